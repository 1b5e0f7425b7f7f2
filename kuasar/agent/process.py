"""One process of a container: the init that the container was created with, or an exec.

Lives from ``task.create`` or ``task.exec`` until ``task.delete``. It ends in two steps: *dead* (reaped by the agent)
and *stopped* (its output has been handed over, everybody is told); ``task.wait`` is about the second.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from kuasar.agent.states import StateMachine, Status
from kuasar.agent.stdio import StdioPaths, Streams
from kuasar.core.aio import Future, Loop
from kuasar.core.errors import NotFound, WrongState
from kuasar.core.spawn import Exit

NEVER_STARTED = 137
"""Exit status of a process that was deleted before it ran, as if it had been killed."""


class Process:
    """State, numbers and streams of one process. ``exec_id`` is empty for an init."""

    def __init__(self, loop: Loop, container_id: str, exec_id: str, streams: Streams) -> None:
        self.container_id = container_id
        self.exec_id = exec_id
        self.streams = streams
        self.machine = StateMachine(f"exec {exec_id} of container {container_id}" if exec_id else container_id)
        self.spec: dict[str, Any] = {}
        """The OCI process of an exec."""
        self.pid = 0
        """In the agent's pid namespace; 0 before the process exists."""
        self.host_pid = 0
        self._send: Callable[[int], None] = lambda _: None
        self.exit_status = 0
        self.exited_at = 0
        self.dead = False
        self.exited: Future[None] = Future(loop)
        self.starting: Future[None] | None = None
        """While its start is being answered: the end is told after that."""

    @property
    def status(self) -> Status:
        """Where it is in its life."""
        return self.machine.status

    @property
    def paths(self) -> StdioPaths:
        """What its caller gave as standard streams."""
        return self.streams.paths

    def exists(self, pid: int, host_pid: int, send: Callable[[int], None] | None = None) -> None:
        """The process has been made; ``send`` sends it a signal where its ``pid`` is not the one to get it."""
        self.pid, self.host_pid = pid, host_pid
        # We are the one who reaps it, and ask only while we have not done so: the number is still this process's.
        self._send = send or (lambda number: os.kill(pid, number))

    def signal(self, number: int) -> None:
        """Send a signal. Raises :class:`NotFound` when it has ended, :class:`WrongState` when it is not there yet."""
        if self.dead or self.status is Status.STOPPED:
            raise NotFound(f"kill: {self.machine.name} has ended", process="ended")
        if not self.pid:
            raise WrongState(f"kill: {self.machine.name} has not been started", seen="created", needed="running")
        self._send(number)

    def kill(self) -> None:
        """SIGKILL, if there is anything to kill."""
        if self.pid and not self.dead:
            self._send(signal.SIGKILL)

    def reaped(self, end: Exit) -> None:
        """It is dead, how and when is known."""
        self.dead = True
        self.exit_status = end.shell_code
        self.exited_at = time.time_ns()

    def stopped(self) -> None:
        """Its end may be told."""
        self.streams.release_process()
        self.machine.to(Status.STOPPED)
        self.exited.set_result(None)

    def discard(self) -> None:
        """It never ran and never will."""
        self.exit_status, self.exited_at = NEVER_STARTED, time.time_ns()
        self.streams.close()
        self.machine.to(Status.STOPPED)
        self.exited.set_result(None)

    def end(self) -> dict[str, Any]:
        """How it ended, for replies, and how much it wrote where that is known."""
        return {"exit_status": self.exit_status, "exited_at": self.exited_at, **self.streams.counts()}
