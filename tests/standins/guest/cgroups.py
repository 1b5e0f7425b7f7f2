"""A cgroup below the VMM's, in every hierarchy that has controllers: the guest's own root.

On a version 2 host it has no controllers, because the VMM's processes are in its parent.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from kuasar.core.cgroup import current

_REMOVE_SECONDS = 5.0
_CPUSET = ("cpuset.cpus", "cpuset.mems")


class GuestCgroup:
    """Made at once; ends with :meth:`remove`."""

    def __init__(self, vmm: int, name: str) -> None:
        self.mounts: list[tuple[str, str, str]] = []
        """Name below /sys/fs/cgroup (empty: that itself), type and options of what the guest mounts."""
        self._directories: list[str] = []
        self._freezer = ""
        with open(f"/proc/{vmm}/cgroup", encoding="utf-8") as file:
            for line in file:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                self._add(controllers, f"{path.rstrip('/')}/{name}")

    def _add(self, controllers: str, path: str) -> None:
        hierarchies = current()
        if hierarchies.version == 2:
            directory = f"{hierarchies.unified}{path}"
            self.mounts.append(("", "cgroup2", ""))
            self._freezer = f"{directory}/cgroup.freeze"
        else:
            root = hierarchies.controllers.get(controllers.split(",")[0])
            if not root:
                return  # the version 2 hierarchy of a hybrid host, where nothing is limited or counted
            directory = f"{root}{path}"
            options = controllers if "=" not in controllers else f"none,{controllers}"
            self.mounts.append((controllers.removeprefix("name="), "cgroup", options))
            if controllers == "freezer":
                self._freezer = f"{directory}/freezer.state"
        os.mkdir(directory)
        self._directories.append(directory)
        if "cpuset" in controllers.split(","):
            for name in _CPUSET:
                _write(f"{directory}/{name}", _read(f"{os.path.dirname(directory)}/{name}"))

    def enter(self, pid: int) -> None:
        """Move a process in."""
        for directory in self._directories:
            _write(f"{directory}/cgroup.procs", str(pid))

    def freeze(self, frozen: bool) -> None:
        """Freeze or thaw all that is in it."""
        if self._freezer.endswith("freezer.state"):
            wanted = "FROZEN" if frozen else "THAWED"
            while _read(self._freezer) != wanted:
                _write(self._freezer, wanted)
        else:
            _write(self._freezer, "1" if frozen else "0")

    def remove(self) -> None:
        """All of it, as soon as the processes are gone; harmless when somebody else is faster."""
        deadline = time.monotonic() + _REMOVE_SECONDS
        while left := [each for each in self._directories if not _remove_below(each)]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"cgroup {left[0]} stays busy")
            time.sleep(0.005)


def _remove_below(directory: str) -> bool:
    try:
        for parent, _, _ in os.walk(directory, topdown=False):
            with suppress(FileNotFoundError):
                os.rmdir(parent)
    except OSError:
        return False
    return True


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()


def _write(path: str, value: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(value)
