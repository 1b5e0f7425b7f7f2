"""Kernel modules of the image: which there are, what each needs, loading one.

The build writes the tables beside them: a line for each module with what it needs, one for each other name that a
module goes by, and those that every guest loads. What the kernel asks for by itself (a privileged container mounts a
file system, or sets up a packet filter) comes through ``guest/pid1/modprobe.py``.
"""

from __future__ import annotations

import ctypes
import errno
import os

DIRECTORY = "/usr/lib/modules"
_FINIT_MODULE = {"x86_64": 313, "aarch64": 273}


class Table:
    """The modules of the running image. ``at_boot``: the names that every guest loads, in order."""

    def __init__(self, directory: str = DIRECTORY) -> None:
        self._directory = directory
        self._needs: dict[str, list[str]] = {}
        self._loaded: set[str] = set()
        with open(f"{directory}/needs", encoding="ascii") as file:
            for line in file:
                name, *needs = line.split()
                self._needs[name] = needs
        with open(f"{directory}/at-boot", encoding="ascii") as file:
            self.at_boot = file.read().split()

    def load(self, name: str) -> None:
        """Load a module and all it needs; harmless when loaded or built into the kernel. Raises ``OSError``:
        ``ENOENT`` when the image has no such module."""
        name = name.replace("-", "_")
        if name in self._loaded or os.path.exists(f"/sys/module/{name}"):
            return
        if name not in self._needs:
            raise OSError(errno.ENOENT, "is not in the image", name)
        for needed in self._needs[name]:
            self.load(needed)
        self._insert(name)
        self._loaded.add(name)

    def find(self, alias: str) -> str | None:
        """The module that goes by ``alias``, as the kernel spells what it asks for (``fs-xfs``)."""
        if alias.replace("-", "_") in self._needs:
            return alias
        with open(f"{self._directory}/aliases", encoding="ascii") as file:
            for line in file:
                known, _, name = line.rstrip("\n").partition(" ")
                if known == alias:
                    return name
        return None

    def _insert(self, name: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        fd = os.open(f"{self._directory}/{name}.ko", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if libc.syscall(_FINIT_MODULE[os.uname().machine], fd, b"", 0) < 0:
                number = ctypes.get_errno()
                if number != errno.EEXIST:
                    raise OSError(number, os.strerror(number), name)
        finally:
            os.close(fd)
