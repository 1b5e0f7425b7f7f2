"""Processes by identity: a pid with its start time, held by a pidfd. A remembered number alone is never signalled."""

from __future__ import annotations

import os
import signal
import struct

CLK_TCK = os.sysconf("SC_CLK_TCK")
_GET_INFO = 0xC040FF0B
"""PIDFD_GET_INFO of <linux/pidfd.h> with the first version of its structure, which has the exit code at its end."""
_INFO = struct.Struct("Q52xi")
_INFO_EXIT = 1 << 3


def raise_descriptor_limit() -> int:
    """Raise this process's limit of open descriptors as far as it may, and give it."""
    import resource  # not in every guest's Python

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def start_time(pid: int) -> int | None:
    """Start time of ``pid`` in clock ticks since boot, or None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return None


def open_process(pid: int, started: int) -> int | None:
    """A pidfd of the process that is ``pid`` and was started at ``started``, or None if that one is gone.

    The caller owns the descriptor. The start time is read again behind the open pidfd, so that a reused number cannot
    slip in between.
    """
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if start_time(pid) == started and not has_ended(fd):
        return fd
    os.close(fd)
    return None


def send_signal(pidfd: int, number: int) -> bool:
    """Signal through a pidfd; False if the process is gone."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def has_ended(pidfd: int) -> bool:
    """Whether the process behind ``pidfd`` is dead (a zombie counts as dead)."""
    import select

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def wait_status(pidfd: int) -> int | None:
    """How a process that may be nobody's child has ended, as ``waitpid`` would say; None while its parent has not
    reaped it, and on kernels before 6.15, which do not tell."""
    import fcntl

    facts = bytearray(_INFO.pack(_INFO_EXIT, 0))
    try:
        fcntl.ioctl(pidfd, _GET_INFO, facts)
    except OSError:
        return None
    told, status = _INFO.unpack(facts)
    return int(status) if told & _INFO_EXIT else None
