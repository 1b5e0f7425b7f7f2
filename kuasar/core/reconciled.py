"""What the reconciler has found at its last look, for those who only want to know: ``<state dir>/reconciled.json``.

Written by every look of the reconciler, also by one that changes nothing, and replaced whole, so a reader needs no
lock. The counts of steps go on over the lives of reconcilers, until the state directory goes.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kuasar.core import log

FILE = "reconciled.json"


@dataclass(frozen=True)
class Look:
    """One look. Counts by kind of object."""

    at: float
    """Seconds since the epoch."""
    recorded: dict[str, int] = field(default_factory=dict)
    """What the records name."""
    alive: dict[str, int] = field(default_factory=dict)
    """What there is of it."""
    leaked: dict[str, int] = field(default_factory=dict)
    """What nobody answers for, and is still there."""
    steps: dict[str, dict[str, int]] = field(default_factory=dict)
    """By verb and result (``done``, ``failed``), how often a step was taken since the state directory was made."""


def read(state_dir: str) -> Look | None:
    """The last look; None if there was none, or it cannot be read (which is logged)."""
    try:
        with open(f"{state_dir}/{FILE}", encoding="utf-8") as file:
            return Look(**json.load(file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as exc:
        log.warning("the reconciler's last look cannot be read", error=exc)
        return None


def write(state_dir: str, look: Look, steps: Iterable[tuple[str, str]]) -> None:
    """Write ``look`` down, its steps counted on by ``steps`` (verb, result). Nothing fails because it is not
    possible."""
    path = f"{state_dir}/{FILE}"
    try:
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a look by hand may be at it, too
            before = read(state_dir)
            counts = _counted(before.steps if before is not None else {}, steps)
            values = dataclasses.asdict(dataclasses.replace(look, steps=counts))
            with open(f"{path}.new", "w", encoding="utf-8") as file:
                json.dump(values, file)
            os.replace(f"{path}.new", path)
        finally:
            os.close(lock)
    except OSError as exc:
        log.warning("what was found cannot be written down", error=exc)


def _counted(before: Mapping[str, Mapping[str, int]], steps: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    counts = {verb: dict(results) for verb, results in before.items()}
    for verb, result in steps:
        results = counts.setdefault(verb, {})
        results[result] = results.get(result, 0) + 1
    return counts
