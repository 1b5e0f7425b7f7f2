"""Which cgroup hierarchies this host has mounted and where, and how the paths in them are spelt."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from kuasar.core.errors import InvalidArgument


@dataclass(frozen=True)
class Hierarchies:
    """The mounted hierarchies."""

    controllers: Mapping[str, str] = field(default_factory=dict)
    """Version 1: controller (or ``name=…``) to mount point; several may share one. Empty on a pure version 2 host."""
    unified: str = ""
    """Mount point of the version 2 hierarchy; empty if there is none."""

    @property
    def version(self) -> int:
        """1 on version 1 and hybrid hosts, 2 on pure version 2 ones: the version of the controllers that count."""
        return 1 if self.controllers or not self.unified else 2

    def path(self, controller: str, cgroup: str) -> str | None:
        """The directory of ``cgroup`` in the hierarchy of ``controller``, or None where that is not mounted.

        On a pure version 2 host all controllers are in the one hierarchy.
        """
        root = self.controllers.get(controller) if self.version == 1 else self.unified
        return root + cgroup if root else None

    def roots(self) -> list[str]:
        """Every mounted hierarchy once."""
        return list(dict.fromkeys([*self.controllers.values(), *([self.unified] if self.unified else [])]))

    def directories(self, cgroup: str) -> list[str]:
        """The directories of ``cgroup`` in every hierarchy, whether they exist or not."""
        return [root + cgroup for root in self.roots()]


# Options of a version 1 mount that are no controllers.
_FLAGS = frozenset({"rw", "ro", "xattr", "noprefix", "clone_children", "none", "all", "cpuset_v2_mode", "favordynmods"})


def parse_mountinfo(text: str) -> Hierarchies:
    """The hierarchies in the text of ``/proc/self/mountinfo``. Of several mounts of one, the first whole one counts."""
    controllers: dict[str, str] = {}
    unified = ""
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")
        if len(fields) < 5 or len(kind) < 3 or fields[3] != "/":
            continue
        where = fields[4].encode().decode("unicode_escape") if "\\" in fields[4] else fields[4]
        if kind[0] == "cgroup2":
            unified = unified or where
        elif kind[0] == "cgroup":
            for option in kind[2].split(","):
                if option not in _FLAGS and not option.startswith("release_agent="):
                    controllers.setdefault(option, where)
    return Hierarchies(controllers, unified)


@functools.cache
def current() -> Hierarchies:
    """The hierarchies of this host, read once per process."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return parse_mountinfo(file.read())


def expand(path: str) -> str:
    """An OCI ``cgroupsPath`` as a path below the hierarchies' roots: absolute and without ``..``.

    The systemd form ``slice:prefix:name`` becomes the directory in which systemd would put that scope, a lone
    ``a-b.slice`` the directory of that slice. Raises :class:`InvalidArgument` for what is neither.
    """
    if path.count(":") == 2 and "/" not in path:
        parent, prefix, name = path.split(":")
        if not name:
            raise InvalidArgument(f"linux.cgroupsPath: {path!r} has no name", field="linux.cgroupsPath")
        unit = name if name.endswith(".slice") else f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
        return f"{_expand_slice(parent or 'system.slice')}/{unit}"
    if path.endswith(".slice") and "/" not in path:
        return _expand_slice(path)
    normal = os.path.normpath("/" + path.lstrip("/"))
    if normal == "/" or "\0" in normal:
        raise InvalidArgument(f"linux.cgroupsPath: {path!r} names no cgroup", field="linux.cgroupsPath")
    return normal


def _expand_slice(name: str) -> str:
    """``a-b.slice`` lives in ``/a.slice/a-b.slice``; ``-.slice`` is the root."""
    stem = name.removesuffix(".slice")
    if stem == "-":
        return ""
    parts = stem.split("-")
    if not name.endswith(".slice") or not all(parts):
        raise InvalidArgument(f"linux.cgroupsPath: {name!r} is no slice", field="linux.cgroupsPath")
    return "".join(f"/{'-'.join(parts[: count + 1])}.slice" for count in range(len(parts)))
