"""Processes by identity: a pid with its start time, held by a pidfd. A remembered number alone is never signalled."""

from __future__ import annotations

import os
import signal

CLK_TCK = os.sysconf("SC_CLK_TCK")


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
