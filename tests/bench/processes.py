"""The processes of the machine: who runs what, below whom."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Process:
    """One process at the time of the look."""

    pid: int
    parent: int
    command: str
    """The words of its command line, a blank between them."""


def processes() -> dict[int, Process]:
    """All but ourselves, by pid."""
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as line, open(f"/proc/{name}/stat", "rb") as stat:
            command = line.read().replace(b"\0", b" ").decode(errors="replace")
            parent = int(stat.read().rpartition(b")")[2].split()[1])
            found[int(name)] = Process(int(name), parent, command)
    return found


def below(pid: int, known: Mapping[int, Process]) -> set[int]:
    """The descendants of a process among ``known``."""
    found: set[int] = set()
    ask = {pid}
    while ask:
        ask = {process.pid for process in known.values() if process.parent in ask} - found
        found |= ask
    return found
