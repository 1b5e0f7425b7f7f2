"""Leaving as little as possible in the machine's memory, so that a template of it is small and sparse."""

from __future__ import annotations

import gc
import mmap
import os
from contextlib import ExitStack, suppress

from kuasar.agent import kernel

_CHUNK = 1 << 20
_RESERVE = 3 << 20
"""Free memory that is left alone: below it the kernel would begin to kill."""
_LITTLE_KIB = 512
_MIN_FREE = "/proc/sys/vm/min_free_kbytes"


def rest() -> int:
    """Drop caches, then fill all free memory with zeros and give it back; the bytes that are free then.

    Until :func:`wake`, what is read again of our programs comes page by page: otherwise each page would bring the 31
    around it, and the answer to this request alone would bring 4 MiB.
    """
    gc.collect()
    gc.freeze()  # what is here now stays: a clone's collector does not have to write to it
    os.sync()
    with ExitStack() as undo:
        undo.callback(_write, _MIN_FREE, _read(_MIN_FREE))
        _write(_MIN_FREE, str(_LITTLE_KIB))
        _advise_files(kernel.MADV_RANDOM)  # what we need from here on is read alone, not with all around it
        _advise_files(kernel.MADV_PAGEOUT)
        for file in ("drop_caches", "compact_memory", "drop_caches"):
            _write(f"/proc/sys/vm/{file}", "3" if file == "drop_caches" else "1")
        _zero_free_memory()
    return free_bytes()


def wake() -> None:
    """After a rest: read files as usual again."""
    _advise_files(kernel.MADV_NORMAL)


def _advise_files(advice: int) -> None:
    """About the pages of our programs, which are on the disk as well."""
    for start, end in kernel.code_mappings(with_constants=True):
        with suppress(OSError):  # a mapping of a kind that the kernel does not do this for
            kernel.advise(start, end - start, advice)


def _zero_free_memory() -> None:
    """The kernel clears each page before it hands it out: taking one is enough."""
    taken = []
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    try:
        while free_bytes() > _RESERVE + _CHUNK:
            taken.append(mmap.mmap(-1, _CHUNK, flags))
    finally:
        for area in taken:
            area.close()


def free_bytes() -> int:
    """Memory that nobody uses."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemFree:"):
                return int(line.split()[1]) * 1024
    return 0


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def _write(path: str, value: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(value)
