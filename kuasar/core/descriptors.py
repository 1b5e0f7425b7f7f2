"""File descriptors as a budget: a clear refusal before they run out, instead of failures in the middle of things."""

from __future__ import annotations

import os

from kuasar.core.errors import ResourceExhausted

RESERVE = 32
"""Kept free for what must go on when nothing new is possible: answers, ends, logs, replacements of the dead."""

_OPEN_FILES = "Max open files"
_UNLIMITED = 1 << 30


def in_use() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd")) - 1


def limit() -> int:
    """How many it may have open (from procfs: a guest's Python has no module ``resource``)."""
    with open("/proc/self/limits", encoding="ascii") as file:
        for line in file:
            if line.startswith(_OPEN_FILES):
                soft = line.removeprefix(_OPEN_FILES).split()[0]
                return int(soft) if soft.isdigit() else _UNLIMITED
    return _UNLIMITED


def require_room(wanted: int, what: str) -> None:
    """Raise :class:`ResourceExhausted` unless ``wanted`` more, and the reserve, can be opened. ``what`` needs them."""
    most, used = limit(), in_use()
    if used + wanted + RESERVE > most:
        raise ResourceExhausted(
            f"{what}: {used} of {most} descriptors of process {os.getpid()} are in use and {RESERVE} are kept in "
            f"reserve, so {wanted} more cannot be had (raise its limit, RLIMIT_NOFILE)",
            used=used,
            limit=most,
        )
