"""Machines made of namespaces: the agent itself, forked into the pod's namespaces, is the machine.

The agent is PID 1 of a pid namespace (unless the pod uses the host's), so killing it kills the pod; its mount namespace
dies with it, so no mount outlives it. runc and Wasmtime differ only in the driver that the agent is told to use.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from abc import abstractmethod
from contextlib import suppress
from typing import Any, ClassVar

from kuasar.agent.client import AgentClient
from kuasar.backends.base import Backend, Ended, MachineSpec, Stage
from kuasar.core import log
from kuasar.core.errors import BackendFailed, DeadlineExceeded, KuasarError
from kuasar.core.process import open_process, send_signal, start_time

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000

_BACKLOG = 8
_KILL_SECONDS = 5.0


class NamespaceBackend(Backend):
    """Everything of runc and Wasmtime but the choice of the driver."""

    uses_host_cgroups: ClassVar[bool] = True
    _pidfd: int | None = None
    _pid: int = 0

    @abstractmethod
    def driver(self) -> tuple[str, dict[str, Any]]:
        """Name and typed options of the agent's container driver."""

    @property
    def pid(self) -> int:
        return self._pid

    async def launch(self, spec: MachineSpec, deadline: float | None) -> None:
        driver, options = self.driver()
        args = {
            "sandbox_id": spec.sandbox_id,
            "directory": self.host.directory,
            "cgroup": spec.cgroup,
            "netns": spec.netns,
            "pid_namespace": not spec.host_pid,
            "host_namespaces": ([] if spec.netns else ["net"]) + (["ipc"] if spec.host_ipc else []),
            "driver": driver,
            "options": options,
        }
        flags = CLONE_NEWNS | CLONE_NEWUTS
        flags |= 0 if spec.host_ipc else CLONE_NEWIPC
        flags |= 0 if spec.host_pid else CLONE_NEWPID
        self.host.acquiring("socket", self._socket_path)
        listener = _listen(self.host.directory)
        try:
            log_fd = os.open(spec.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                process = self.host.start_agent(args, listener.fileno(), log_fd, flags)
            finally:
                os.close(log_fd)
            try:
                self._take(process.pid)
                process.commit()
            except BaseException:
                process.abort()
                raise
        finally:
            listener.close()  # the agent has its own copy

    def _take(self, pid: int) -> None:
        started = start_time(pid)
        if started is None:
            raise BackendFailed("the agent died before it was started")
        self.host.remember(pid=pid, started=started)
        self._pidfd = open_process(pid, started)
        if self._pidfd is None:
            raise BackendFailed("the agent died before it was started")
        self._pid = pid

    async def adopt(self, deadline: float | None) -> bool:
        pid, started = self.host.machine.get("pid", 0), self.host.machine.get("started", 0)
        self._pidfd = open_process(pid, started) if pid else None
        if self._pidfd is None:
            return False
        self._pid = pid
        return True

    async def connect_agent(self, deadline: float | None) -> AgentClient:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        directory = os.open(self.host.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            channel.connect(f"/proc/self/fd/{directory}/{_SOCKET}")
        except OSError as exc:
            channel.close()
            raise BackendFailed(f"cannot connect to the agent at {self._socket_path}: {exc.strerror}") from exc
        finally:
            os.close(directory)
        client = AgentClient(self.host.loop, channel)
        try:
            await client.hello(deadline)
        except BaseException:
            client.close()
            raise
        return client

    async def wait(self) -> Ended:
        if self._pidfd is None:
            return Ended(255, "the agent is gone")
        await self.host.loop.wait_readable(self._pidfd)
        return Ended(255, "the agent died")

    async def stop(self, grace: float, agent: AgentClient | None) -> Stage:
        if self._pidfd is None:
            return Stage.GONE
        deadline = time.monotonic() + grace + 1.0
        if agent is not None:
            # The peer may be dead or hung: whatever it answers, what counts is whether it ends.
            with suppress(KuasarError):
                await agent.call("shutdown", {"grace": grace}, deadline=deadline)
                await self._await_end(deadline)
                return Stage.ASKED
        send_signal(self._pidfd, signal.SIGKILL)
        await self._await_end(time.monotonic() + _KILL_SECONDS)
        return Stage.KILLED

    async def _await_end(self, deadline: float) -> None:
        assert self._pidfd is not None
        readable = os.dup(self._pidfd)  # a registration of its own: wait() may be watching the other
        try:
            await self.host.loop.wait_for(self.host.loop.wait_readable(readable), deadline, "the end of the agent")
        except DeadlineExceeded:
            log.warning("the agent does not end", pid=self._pid)
            raise
        finally:
            self.host.loop.remove_reader(readable)
            os.close(readable)

    async def release(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._socket_path)
        self.host.released("socket", self._socket_path)
        if self._pidfd is not None:
            self.host.loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    @property
    def _socket_path(self) -> str:
        return f"{self.host.directory}/{_SOCKET}"


_SOCKET = "agent.sock"


def _listen(directory: str) -> socket.socket:
    """A listening socket in ``directory``, which may be deeper than a socket address is long."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(FileNotFoundError):
            os.unlink(_SOCKET, dir_fd=directory_fd)
        listener.bind(f"/proc/self/fd/{directory_fd}/{_SOCKET}")
        os.chmod(_SOCKET, 0o600, dir_fd=directory_fd)
        listener.listen(_BACKLOG)
    except OSError as exc:
        listener.close()
        raise BackendFailed(f"cannot listen on {directory}/{_SOCKET}: {exc.strerror}") from exc
    finally:
        os.close(directory_fd)
    return listener
