"""Waiting for hot-plugged devices: the kernel tells of each on a netlink socket, which is open while somebody waits."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TypeVar

from kuasar.core.aio import Future, Loop
from kuasar.core.errors import DeadlineExceeded

T = TypeVar("T")
_NETLINK_KOBJECT_UEVENT = 15
_KERNEL_GROUP = 1
_WAIT_SECONDS = 30.0


class Uevents:
    """The kernel's device events. One per agent."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._socket: socket.socket | None = None
        self._waiters: list[Future[None]] = []

    async def until(self, look: Callable[[], T | None], deadline: float | None, what: Callable[[], str]) -> T:
        """What ``look`` gives as soon as that is not None; it is asked now and after each event.

        Raises :class:`DeadlineExceeded` with the words of ``what`` at ``deadline`` (monotonic; 30 s by default).
        """
        if deadline is None:
            deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            event: Future[None] = Future(self._loop)
            self._add(event)  # before the look: what happens after it is told
            try:
                found = look()
                if found is not None:
                    return found
                try:
                    await self._loop.wait_for(event, deadline)
                except DeadlineExceeded as exc:
                    raise DeadlineExceeded(what()) from exc
            finally:
                self._remove(event)

    def _add(self, event: Future[None]) -> None:
        if self._socket is None:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_KOBJECT_UEVENT)
            self._socket.bind((0, _KERNEL_GROUP))
            self._loop.add_reader(self._socket.fileno(), self._on_event)
        self._waiters.append(event)

    def _remove(self, event: Future[None]) -> None:
        self._waiters.remove(event)
        if not self._waiters and self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _on_event(self) -> None:
        """Which one it was does not matter: whoever waits looks again."""
        sock = self._socket
        while sock is not None:
            try:
                sock.recv(8192)
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: some were lost, which changes nothing
                continue
        for event in self._waiters:
            event.set_result(None)
