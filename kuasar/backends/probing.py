"""What an engine's program is on this host, without starting a sandbox: how backends answer ``Backend.probe``."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kuasar.core.errors import BackendFailed
from kuasar.core.spawn import PATH, Children, Completed

_VERSION = re.compile(r"version:?\s+(\S+)")


@dataclass(frozen=True)
class Probe:
    """An engine that can be used."""

    binary: str
    """Where its program is; empty if it has none."""
    version: str
    details: Mapping[str, str] = field(default_factory=dict)
    """What else there is to say."""


class Runner(Protocol):
    """What runs programs: a probe's host, or a :class:`kuasar.backends.base.Host`."""

    async def run(self, argv: Sequence[str], deadline: float | None) -> Completed:
        """Run a program to its end and collect its output."""


class ProbeHost:
    """What a probe may use of the host: programs."""

    def __init__(self, children: Children) -> None:
        self.children = children

    async def run(self, argv: Sequence[str], deadline: float | None) -> Completed:
        """See :meth:`kuasar.backends.base.Host.run`."""
        return await self.children.run(argv, deadline=deadline)


def require_program(name: str, hint: str) -> str:
    """The absolute path of ``name``. Raises :class:`BackendFailed` naming what was looked for, where, and ``hint``."""
    found = shutil.which(name, path=PATH)
    if found is not None:
        return os.path.abspath(found)
    if "/" not in name:
        raise BackendFailed(f"there is no program {name} in {PATH}; {hint}")
    why = "cannot be executed" if os.path.exists(name) else "does not exist"
    raise BackendFailed(f"{name} {why}; {hint}")


async def ask_version(
    host: ProbeHost, name: str, hint: str, deadline: float, pattern: re.Pattern[str] = _VERSION
) -> Probe:
    """Find program ``name`` and have it say its version, which is the first group of ``pattern``. Raises
    :class:`BackendFailed` with what it says instead."""
    binary = require_program(name, hint)
    done = await host.run([binary, "--version"], deadline)
    words = done.output.decode(errors="replace").strip()
    if done.exit.shell_code:
        raise BackendFailed(f"{binary} --version {done.exit.words}: {words:.300}")
    match = pattern.search(words)
    if match is None:
        raise BackendFailed(f"{binary} does not say its version, but {words!r:.300}")
    return Probe(binary, match[1])
