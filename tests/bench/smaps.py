"""What a process has in memory, as the kernel's ``smaps`` tells it."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

_KIB = 1024
_HEADER = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ [0-9a-f]+ \S+ (\d+)\s*(.*)")
_FIELD = re.compile(r"(\w+):\s+(\d+) kB")


@dataclass(frozen=True)
class Memory:
    """MiB of one process. A *memory file* is an anonymous one (memfd), such as that of a guest's memory."""

    private_anonymous: float
    """Pages of no file that nobody else has: heap, stacks, what was written of private mappings."""
    private_of_files: float
    """Pages of files that nobody else has mapped, memory files left out."""
    private_of_memory_files: float
    pss: float
    """Proportional set size, memory files left out."""

    @property
    def private(self) -> float:
        """What smaps calls private, clean or dirty."""
        return self.private_anonymous + self.private_of_files + self.private_of_memory_files


def memory_of(pid: int) -> Memory:
    """Of a process that lives. Raises OSError for one that has ended."""
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as file:
        return parse(file)


def parse(lines: Iterable[str]) -> Memory:
    """``lines`` are those of an ``smaps`` file."""
    sums: dict[str, int] = defaultdict(int)
    kind = "anonymous"
    mapping: dict[str, int] = {}
    for line in lines:
        if header := _HEADER.match(line):
            _add(sums, kind, mapping)
            inode, path = header.groups()
            kind, mapping = "memory" if path.startswith("/memfd:") else "files" if int(inode) else "anonymous", {}
        elif field := _FIELD.match(line):
            mapping[field[1]] = int(field[2])
    _add(sums, kind, mapping)
    return Memory(*(sums[name] / _KIB for name in ("anonymous", "files", "memory", "pss")))


def _add(sums: dict[str, int], kind: str, mapping: dict[str, int]) -> None:
    """One mapping's fields, in KiB."""
    private = sum(mapping.get(name, 0) for name in ("Private_Clean", "Private_Dirty", "Private_Hugetlb"))
    # pages of a private mapping that were written belong to no file any more
    anonymous = min(private, mapping.get("Anonymous", 0)) if kind != "anonymous" else private
    sums["anonymous"] += anonymous
    sums[kind] += private - anonymous
    if kind != "memory":
        sums["pss"] += mapping.get("Pss", 0)


def memory_files_mib(pid: int) -> float:
    """What the memory files that a process holds open take, whoever has mapped how much of it; MiB."""
    sizes: dict[tuple[int, int], int] = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{name}"
        with suppress(FileNotFoundError):
            if os.readlink(path).startswith("/memfd:"):
                found = os.stat(path)
                sizes[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(sizes.values()) / _KIB**2


def pss_mib(pid: int) -> float:
    """Proportional set size of a process, everything counted; MiB."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        found = re.search(r"^Pss:\s+(\d+) kB", file.read(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/{pid}/smaps_rollup has no Pss: it has ended, or is a kernel thread")
    return int(found[1]) / _KIB
