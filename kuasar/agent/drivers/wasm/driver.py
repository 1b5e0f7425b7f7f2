"""Containers that are WebAssembly modules: each in a process of its own, forked from the agent, whatever the engine.

The process is made by ``create`` and waits, with its module compiled and its surroundings ready, for ``start``'s byte
(``wasm/process.py``). It is an ordinary child: signals have their default effect, so that a kill ends a busy loop at
once, and its exit code is the module's. The driver holds of it the channel until it is started, and the cgroup until it
is deleted. The engine is used in that process only, never in the agent itself.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import termios
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import msgpack

from kuasar.agent.drivers.base import EXEC, PAUSE, SYSCTLS, TTY, UPDATE, ContainerSetup, ProcessStdio, Started
from kuasar.agent.drivers.wasm import process
from kuasar.agent.drivers.wasm.engine import Engine
from kuasar.agent.drivers.wasm.plan import Plan, plan
from kuasar.core import cgroup, log
from kuasar.core.aio import Loop
from kuasar.core.errors import AlreadyExists, BackendFailed, NotFound, Unimplemented, WrongState, from_wire, wrap
from kuasar.core.process import send_signal

NO_EXEC = (
    "exec: a WebAssembly container consists of one module and has no shell or other program to run in it; "
    "read its output with the logs, or add another container with a module that looks at the same volumes"
)


@dataclass
class _Container:
    """What the driver holds of a container."""

    channel: socket.socket | None
    """Our end until ``start``; closing it makes the waiting process exit."""
    cgroup: str
    """Its path; empty for a container without one."""


class WasmDriver:
    """The verbs of ``base.Driver``."""

    capabilities = frozenset({PAUSE, UPDATE, TTY, SYSCTLS})
    refusals: Mapping[str, str] = {EXEC: NO_EXEC}
    """What to tell who asks for a capability that is missing."""

    def __init__(self, loop: Loop, engine: Engine) -> None:
        self.name = engine.name
        self._loop = loop
        self._engine = engine
        self._containers: dict[str, _Container] = {}

    async def create(self, setup: ContainerSetup, stdio: ProcessStdio, deadline: float | None) -> Started:
        """See ``base.Driver``. Compiles the module if its compiled form is not in the cache."""
        if setup.id in self._containers:
            raise AlreadyExists(f"container {setup.id} exists")
        planned = plan(setup.rootfs, setup.spec, self._engine.needs)
        await self._engine.check(planned, deadline)
        container = _Container(None, cgroup.expand(planned.cgroup) if planned.cgroup else "")
        try:
            if container.cgroup:
                cgroup.create(container.cgroup)
                cgroup.apply(container.cgroup, planned.resources)
            started = await self._make_process(container, planned, stdio, deadline)
        except BaseException as exc:
            await self._remove_cgroup(container)
            if isinstance(exc, OSError):
                raise wrap(exc, "cannot make the container's process") from exc
            raise
        self._containers[setup.id] = container
        return started

    async def start(self, container_id: str, deadline: float | None) -> None:
        """See ``base.Driver``."""
        container = self._require(container_id)
        if container.channel is None:
            raise WrongState(f"container {container_id} was started already", seen="running", needed="created")
        with container.channel as channel:
            container.channel = None
            try:
                channel.send(process.START)
            except ConnectionError as exc:
                raise BackendFailed(f"the process of container {container_id} ended before it was started") from exc

    async def exec(
        self, container_id: str, exec_id: str, process: dict[str, Any], stdio: ProcessStdio, deadline: float | None
    ) -> NoReturn:
        """Always :class:`Unimplemented`: says what to do instead."""
        raise Unimplemented(NO_EXEC, engine=self.name, capability="exec")

    async def delete(self, container_id: str, deadline: float | None) -> None:
        """See ``base.Driver``. A process that was never started exits by itself."""
        container = self._containers.get(container_id)
        if container is None:
            return
        if container.channel is not None:
            container.channel.close()
            container.channel = None
        await self._remove_cgroup(container)
        del self._containers[container_id]

    async def pause(self, container_id: str, deadline: float | None) -> None:
        """See ``base.Driver``."""
        await cgroup.freeze(self._loop, self._require_cgroup(container_id, "pause"), deadline)

    async def resume(self, container_id: str, deadline: float | None) -> None:
        """See ``base.Driver``."""
        cgroup.thaw(self._require_cgroup(container_id, "resume"))

    async def update(self, container_id: str, resources: dict[str, Any], deadline: float | None) -> None:
        """See ``base.Driver``. Changes the cgroup.

        How far the module's memory may grow was fixed at ``create``: a lower limit is enforced by the kernel, a higher
        one gives room to the engine only.
        """
        cgroup.apply(self._require_cgroup(container_id, "update"), resources)

    async def _make_process(
        self, container: _Container, planned: Plan, stdio: ProcessStdio, deadline: float | None
    ) -> Started:
        """Fork, and wait until the process is ready for ``start`` or says why not. Kills it on failure."""
        with ExitStack() as undo:
            channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.enter_context(channel)
            with theirs, _standard_descriptors(stdio, planned.uid) as (fds, console):
                if console is not None:
                    undo.callback(os.close, console)
                pid = process.fork(
                    process.Launch(planned, self._engine, fds, stdio.terminal, theirs.fileno(), container.cgroup)
                )
            pidfd = os.pidfd_open(pid)
            try:
                await self._until_ready(channel, planned, deadline)
            except BaseException:
                send_signal(pidfd, signal.SIGKILL)
                await self._loop.wait_readable(pidfd)  # its cgroup cannot be removed before
                raise
            finally:
                os.close(pidfd)
            undo.pop_all()
            container.channel = channel
            return Started(pid, console)

    async def _until_ready(self, channel: socket.socket, planned: Plan, deadline: float | None) -> None:
        try:
            what = f"loading {planned.module}"
            await self._loop.wait_for(self._loop.wait_readable(channel.fileno()), deadline, what)
        finally:
            self._loop.remove_reader(channel.fileno())
        message = channel.recv(process.MAX_MESSAGE)
        if not message:
            raise BackendFailed(f"the process that loads {planned.module} died; it may have hit a limit of the pod")
        answer = msgpack.unpackb(message)
        if "error" in answer:
            raise from_wire(answer["error"])
        if answer["note"]:
            log.warning(answer["note"], module=planned.module)

    async def _remove_cgroup(self, container: _Container) -> None:
        if container.cgroup:
            await cgroup.destroy(self._loop, container.cgroup)
            container.cgroup = ""

    def _require(self, container_id: str) -> _Container:
        container = self._containers.get(container_id)
        if container is None:
            raise NotFound(f"no container {container_id}")
        return container

    def _require_cgroup(self, container_id: str, verb: str) -> str:
        path = self._require(container_id).cgroup
        if not path:
            words = f"{verb}: container {container_id} has no cgroup (linux.cgroupsPath was empty)"
            raise Unimplemented(words, engine=self.name, capability=verb)
        return path


@contextmanager
def _standard_descriptors(stdio: ProcessStdio, uid: int) -> Iterator[tuple[tuple[int, int, int], int | None]]:
    """The three descriptors for the process, and the master of its terminal, which the caller owns."""
    with ExitStack() as stack:
        if stdio.terminal:
            master, slave = os.openpty()
            stack.callback(os.close, slave)
            os.fchown(slave, uid, -1)
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", stdio.height, stdio.width, 0, 0))
            yield (slave, slave, slave), master
            return
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, null)
        given = (stdio.stdin, stdio.stdout, stdio.stderr)
        stdin, stdout, stderr = (null if fd is None else fd for fd in given)
        yield (stdin, stdout, stderr), None
