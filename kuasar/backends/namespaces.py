"""Machines made of namespaces: the agent itself, forked into the pod's namespaces, is the machine.

The agent is PID 1 of a pid namespace (unless the pod uses the host's), so killing it kills the pod; its mount namespace
dies with it, so no mount outlives it. runc and Wasmtime differ only in the driver that the agent is told to use.
"""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar

from kuasar.agent.client import AgentClient
from kuasar.backends.base import Backend, Ended, Host, MachineSpec, Stage
from kuasar.backends.channels import greet
from kuasar.backends.processes import HeldProcess, open_log
from kuasar.backends.sockets import connect, listen
from kuasar.core.config import Engine
from kuasar.core.errors import KuasarError

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000

_SOCKET = "agent.sock"
_KILL_SECONDS = 5.0


class NamespaceBackend(Backend):
    """Everything of runc and Wasmtime but the choice of the driver."""

    uses_host_cgroups: ClassVar[bool] = True

    def __init__(self, host: Host, settings: Engine) -> None:
        super().__init__(host, settings)
        self._agent = HeldProcess(host, "agent")

    @abstractmethod
    def driver(self) -> tuple[str, dict[str, Any]]:
        """Name and typed options of the agent's container driver."""

    @property
    def pid(self) -> int:
        return self._agent.pid

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
        # The agent gets copies of both.
        with (
            listen(self.host.directory, _SOCKET) as listener,
            open_log(spec.log_path) as log_file,
        ):
            start = partial(self.host.start_agent, args, listener.fileno(), log_file.fileno(), flags)
            self._agent.take(start)

    async def adopt(self, deadline: float | None) -> bool:
        return self._agent.adopt()

    async def connect_agent(self, deadline: float | None) -> AgentClient:
        return await greet(self.host.loop, connect(self.host.directory, _SOCKET, "the agent"), deadline)

    async def wait(self) -> Ended:
        await self._agent.wait()
        return Ended(255, "the agent died")

    async def stop(self, grace: float, agent: AgentClient | None) -> Stage:
        if not self._agent.pid:
            return Stage.GONE
        if agent is not None:
            deadline = time.monotonic() + grace + 1.0
            # The peer may be dead or hung: whatever it answers, what counts is whether it ends.
            with suppress(KuasarError):
                await agent.call("shutdown", {"grace": grace}, deadline=deadline)
            if await self._agent.ended_by(deadline):
                return Stage.ASKED
        await self._agent.kill(time.monotonic() + _KILL_SECONDS)
        return Stage.KILLED

    async def release(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._socket_path)
        self.host.released("socket", self._socket_path)
        self._agent.release()

    @property
    def _socket_path(self) -> str:
        return f"{self.host.directory}/{_SOCKET}"
