"""Holes in files: what a stretch of a file takes is given back, and reads as zeros."""

from __future__ import annotations

import ctypes
import os

_PUNCH_HOLE = 1 | 2  # FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
_libc = ctypes.CDLL(None, use_errno=True)


def punch(fd: int, start: int, size: int) -> None:
    """Make a hole of ``size`` bytes from ``start`` on, of whole pages; the file's size stays. Raises ``OSError``."""
    if _libc.fallocate(fd, _PUNCH_HOLE, ctypes.c_int64(start), ctypes.c_int64(size)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot punch a hole: {os.strerror(number)}")
