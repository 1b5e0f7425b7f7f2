"""A process of a sandbox that outlives the worker: held by a pidfd, found again by pid and start time.

Its facts are in the sandbox's record under its name. It may be nobody's child (a clone of the zygote), so how it ended
is known only if the kernel tells it by the pidfd; what it said before its end is in its log.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import BinaryIO

from kuasar.backends.base import AgentProcess, Host
from kuasar.core.errors import BackendFailed, DeadlineExceeded
from kuasar.core.failpoints import failpoint
from kuasar.core.process import has_ended, open_process, send_signal, start_time, wait_status
from kuasar.core.spawn import Exit

_REAP_LOOKS, _REAP_SECONDS = 5, 0.02
"""Its parent reaps it at once."""


def open_log(path: str) -> BinaryIO:
    """The file at ``path`` (0600), to be appended to. Raises :class:`BackendFailed`."""
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab")
    except OSError as exc:
        raise BackendFailed(f"cannot open the log {path}: {exc.strerror}", errno=exc.errno) from exc


class HeldProcess:
    """One process. States: none -> held -> (ended) -> released."""

    def __init__(self, host: Host, name: str) -> None:
        self._host = host
        self._name = name
        self._pidfd: int | None = None
        self.pid = 0
        """0 if there is none."""

    def take(self, start: Callable[[], AgentProcess]) -> None:
        """Start it, write it down, let it go. Raises :class:`BackendFailed` if it died at once."""
        process = start()
        try:
            failpoint(f"process.{self._name}.forked")
            started = start_time(process.pid)
            if started is not None:
                self._host.remember(**{self._name: [process.pid, started]})
                self._pidfd = open_process(process.pid, started)
            if self._pidfd is None:
                raise BackendFailed(f"the {self._name} died before it was started")
            self.pid = process.pid
            failpoint(f"process.{self._name}.recorded")
            process.commit()
        except BaseException:
            process.abort()
            raise

    def adopt(self) -> bool:
        """Take over what the record names; False if it is dead or was never started."""
        facts = self._host.machine.get(self._name)
        if not facts:
            return False
        self._pidfd = open_process(*facts)
        self.pid = facts[0] if self._pidfd is not None else 0
        return self._pidfd is not None

    @property
    def alive(self) -> bool:
        """Whether it is there and has not ended."""
        return self._pidfd is not None and not has_ended(self._pidfd)

    async def wait(self) -> None:
        """Until it has ended; at once if there is none."""
        if self._pidfd is not None:
            await self._until_readable()

    async def ended_by(self, deadline: float) -> bool:
        """Whether it ends by ``deadline`` (monotonic)."""
        try:
            await self._host.loop.wait_for(self.wait(), deadline, f"the end of the {self._name}")
        except DeadlineExceeded:
            return False
        return True

    async def how_it_ended(self) -> str:
        """``killed by SIGKILL``, ``exited with 1``; empty if it is not known."""
        for _ in range(_REAP_LOOKS):
            status = wait_status(self._pidfd) if self._pidfd is not None else None
            if status is not None:
                return Exit.from_wait_status(status).words
            await self._host.loop.sleep(_REAP_SECONDS)
        return ""

    async def kill(self, deadline: float) -> None:
        """SIGKILL; returns when it is dead. Raises DeadlineExceeded if the kernel does not end it by ``deadline``."""
        if self._pidfd is None:
            return
        send_signal(self._pidfd, signal.SIGKILL)
        await self._host.loop.wait_for(self.wait(), deadline, f"the end of the killed {self._name} {self.pid}")

    def release(self) -> None:
        """Let go of the handle; harmless to repeat."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
            self.pid = 0

    async def _until_readable(self) -> None:
        assert self._pidfd is not None
        # A registration of its own for each that waits: the loop knows one reader per descriptor.
        readable = os.dup(self._pidfd)
        try:
            await self._host.loop.wait_readable(readable)
        finally:
            self._host.loop.remove_reader(readable)
            os.close(readable)
