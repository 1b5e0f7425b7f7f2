"""Tombstones: why a sandbox ended, kept for a day after everything else of it is gone.

``<state dir>/tombstones/<id>.json``, written by the sandbox's worker when its machine ends or its start fails (the last
one counts), read by tools. Bounded in number and size; what is older than a day goes when the next one is written, and
when the reconciler comes round.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kuasar.core import log

KEPT_SECONDS = 24 * 3600.0
MOST = 512
_MAX_REASON_CHARS = 2000
_MAX_LINES = 20
_MAX_LINE_CHARS = 300
_TAIL_BYTES = 8192


@dataclass(frozen=True)
class Tombstone:
    """The end of one sandbox. Times in nanoseconds UTC, 0 = never."""

    sandbox: str
    namespace: str
    engine: str
    pod: str
    """The pod's name; empty when it was given none."""
    phase: str
    """``start: <last phase that ended>``, ``running``, ``stopping``, or ``reconciled``."""
    reason: str
    exit_status: int
    created_at: int
    started_at: int
    ended_at: int
    oom_kills: int = 0
    """Processes of the machine itself (agent, VMM) that the kernel killed because memory had run out."""
    console: list[str] = field(default_factory=list)
    """The last lines of the machine's console."""
    log: list[str] = field(default_factory=list)
    """The last lines of its agent or VMM."""


def directory(state_dir: str) -> str:
    """Where they lie."""
    return f"{state_dir}/tombstones"


def last_lines(path: str) -> list[str]:
    """The end of a text file; nothing if it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    lines = [line.rstrip()[:_MAX_LINE_CHARS] for line in text.splitlines() if line.strip()]
    return lines[-_MAX_LINES:]


def bury(state_dir: str, tombstone: Tombstone) -> bool:
    """Write it down, in the place of an earlier one of the same sandbox; False if that is not possible, which is no
    reason for anything to fail."""
    top = directory(state_dir)
    values = dataclasses.asdict(tombstone) | {"reason": tombstone.reason[:_MAX_REASON_CHARS]}
    path = f"{top}/{tombstone.sandbox}.json"
    try:
        os.makedirs(top, mode=0o700, exist_ok=True)
        if len(os.listdir(top)) >= MOST:
            prune(state_dir)
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            json.dump(values, file, ensure_ascii=False)
        os.replace(f"{path}.new", path)
    except OSError as exc:
        log.warning("no tombstone could be written", error=exc, reason=tombstone.reason)
        with suppress(OSError):
            os.unlink(f"{path}.new")
        return False
    return True


def prune(state_dir: str, now: float | None = None) -> list[str]:
    """Remove what is older than a day, and the oldest beyond :data:`MOST`; gives the names of the removed files."""
    top = directory(state_dir)
    aged: list[tuple[float, str]] = []
    with suppress(FileNotFoundError):
        for name in os.listdir(top):
            with suppress(FileNotFoundError):
                aged.append((os.stat(f"{top}/{name}").st_mtime, name))
    aged.sort()
    oldest = (time.time() if now is None else now) - KEPT_SECONDS
    surplus = max(0, len(aged) - MOST + 1)
    removed = [name for index, (mtime, name) in enumerate(aged) if mtime < oldest or index < surplus]
    for name in removed:
        with suppress(FileNotFoundError):
            os.unlink(f"{top}/{name}")
    return removed


def read_all(state_dir: str) -> list[Tombstone]:
    """All that can be read, the newest end first."""
    top = directory(state_dir)
    found = []
    with suppress(FileNotFoundError):
        for name in os.listdir(top):
            if name.endswith(".json"):
                tombstone = read(f"{top}/{name}")
                if tombstone is not None:
                    found.append(tombstone)
    return sorted(found, key=lambda each: -each.ended_at)


def read(path: str) -> Tombstone | None:
    """One of them; None if it is gone or no tombstone (which is logged)."""
    try:
        with open(path, encoding="utf-8") as file:
            values: Any = json.load(file)
        return Tombstone(**values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as exc:
        log.warning("a tombstone cannot be read", path=path, error=exc)
        return None
