"""Control groups of the host as tests read them: version 1, a controller each, or version 2."""

from __future__ import annotations

import os

ROOT = "/sys/fs/cgroup"
UNIFIED = os.path.exists(f"{ROOT}/cgroup.controllers")

_FILES = {
    # what: (controller and file of version 1, file of version 2)
    "memory.limit": ("memory/memory.limit_in_bytes", "memory.max"),
    "cpu.shares": ("cpu/cpu.shares", "cpu.weight"),
    "cpu.quota": ("cpu/cpu.cfs_quota_us", "cpu.max"),
    "pids": ("pids/cgroup.procs", "cgroup.procs"),
    "frozen": ("freezer/freezer.state", "cgroup.freeze"),
}


def path_of(pid: int, controller: str) -> str:
    """The control group of a process, below the root of its hierarchy."""
    with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if controller in controllers.split(",") or (UNIFIED and not controllers):
                return path
    raise LookupError(f"process {pid} is in no group of {controller}")


def read(pid: int, what: str) -> str:
    """A setting of the group in which a process is."""
    controller, _, name = _FILES[what][0].partition("/")
    path = path_of(pid, controller)
    place = f"{ROOT}{path}/{_FILES[what][1]}" if UNIFIED else f"{ROOT}/{controller}{path}/{name}"
    with open(place, encoding="utf-8") as file:
        return file.read().strip()


def below(parent: str) -> set[str]:
    """Every group below `parent` (a path like "/x"), in all hierarchies."""
    roots = [ROOT] if UNIFIED else [f"{ROOT}/{name}" for name in sorted(os.listdir(ROOT))]
    found = set()
    for root in roots:
        for directory, _, _ in os.walk(root + parent):
            if directory != root + parent:
                found.add(directory)
    return found
