"""Watching a cgroup for processes that the kernel kills because memory has run out."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from kuasar.core.aio import PRIORITY, READ, Loop
from kuasar.core.cgroup.hierarchies import Hierarchies, current
from kuasar.core.errors import BackendFailed


class OomWatch:
    """Calls ``on_oom()`` when the count of OOM kills in ``path`` has grown since the last call.

    Version 1 through an eventfd on ``memory.oom_control``, version 2 through the poll events of ``memory.events``.
    Owned by whoever owns the cgroup; :meth:`close` before removing it. Raises :class:`BackendFailed` when the cgroup
    cannot be watched.
    """

    def __init__(self, loop: Loop, path: str, on_oom: Callable[[], None], at: Hierarchies | None = None) -> None:
        hierarchies = at or current()
        self._loop = loop
        self._on_oom = on_oom
        self._seen = 0
        self._event_fd = -1
        self._control_fd = -1
        directory = hierarchies.path("memory", path)
        if directory is None:
            raise BackendFailed("this host has no memory controller mounted")
        try:
            if hierarchies.version == 1:
                self._watch_version1(directory)
            else:
                self._watch_version2(directory)
        except OSError as exc:
            self.close()
            raise BackendFailed(f"cannot watch {directory} for OOM: {exc.strerror}", errno=exc.errno) from exc
        self._seen = self._count()

    def _watch_version1(self, directory: str) -> None:
        self._control_fd = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        self._event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        control = os.open(f"{directory}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(control, f"{self._event_fd} {self._control_fd}".encode())
        finally:
            os.close(control)
        self._loop.add_reader(self._event_fd, self._notified)

    def _watch_version2(self, directory: str) -> None:
        self._control_fd = os.open(f"{directory}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
        self._loop.add_reader(self._control_fd, self.check, PRIORITY)

    def _notified(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._event_fd, 8)
        self.check()

    def check(self) -> None:
        """Look now. Before an exit is reported: its OOM must be told first, and the notification may be still on its
        way."""
        if self._control_fd < 0:
            return
        count = self._count()
        if count > self._seen:
            self._seen = count
            self._on_oom()

    def _count(self) -> int:
        try:
            return _kills(os.pread(self._control_fd, 4096, 0).decode())
        except OSError:
            return 0  # the cgroup has been removed

    def close(self) -> None:
        """Stop watching; harmless when closed."""
        if self._event_fd >= 0:
            self._loop.remove_reader(self._event_fd, READ)
            os.close(self._event_fd)
        if self._control_fd >= 0:
            self._loop.remove_reader(self._control_fd, PRIORITY)
            os.close(self._control_fd)
        self._event_fd = self._control_fd = -1


def oom_kills(path: str, at: Hierarchies | None = None) -> int:
    """How many processes of the cgroup the kernel has killed for want of memory; 0 where that is not counted."""
    hierarchies = at or current()
    directory = hierarchies.path("memory", path)
    name = "memory.oom_control" if hierarchies.version == 1 else "memory.events"
    try:
        with open(f"{directory}/{name}", encoding="ascii") as file:
            return _kills(file.read())
    except OSError:
        return 0


def _kills(text: str) -> int:
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill":
            return int(value)
    return 0
