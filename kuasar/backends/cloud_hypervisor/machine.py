"""One Cloud Hypervisor process and its sockets: started, given a machine, taken over, ended.

The API's socket is made here and inherited, so it can be connected to at once; the VMM makes that of hybrid vsock.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from functools import partial

from kuasar.agent.client import AgentClient
from kuasar.backends.base import ROOT, Host, User
from kuasar.backends.channels import greet
from kuasar.backends.cloud_hypervisor import bodies
from kuasar.backends.cloud_hypervisor.api import Api
from kuasar.backends.hybrid_vsock import open_port
from kuasar.backends.processes import HeldProcess, open_log
from kuasar.backends.rest import socket_path
from kuasar.backends.sockets import listen
from kuasar.core.errors import KuasarError, Unavailable

API_SOCKET, VSOCK_SOCKET = "api.sock", "vsock.sock"
AGENT_PORT = 1024
"""Where the guest's agent listens (``guest/pid1/channel.py``)."""
_POLL_SECONDS = 0.01
_QUIT_SECONDS = 2.0


class Machine:
    """A Cloud Hypervisor in the directory of ``host``; ``process`` holds it."""

    def __init__(self, host: Host, process: HeldProcess) -> None:
        self._host = host
        self._process = process
        self.api = Api(host.loop, host.directory, API_SOCKET)

    @property
    def vsock_path(self) -> str:
        """Where the VMM is to make its vsock's socket. Raises :class:`BackendFailed` if no address can hold it."""
        return socket_path(self._host.directory, VSOCK_SOCKET)

    async def boot(
        self, binary: str, guest: bodies.Guest, log_path: str, deadline: float, cgroup: str = "", user: User = ROOT
    ) -> None:
        """Start the VMM, give it a machine and let that run. What is left of a failure is undone by ending the process
        and :meth:`disconnect`."""
        for name in (API_SOCKET, VSOCK_SOCKET):
            self._host.acquiring("socket", f"{self._host.directory}/{name}")
        with listen(self._host.directory, API_SOCKET) as listener, open_log(log_path) as log_file:
            argv = bodies.argv(binary, 3)  # where the first inherited descriptor is
            start = partial(self._host.start_program, argv, log_file.fileno(), [listener.fileno()], cgroup, user)
            self._process.take(start)
        await self.api.put("vm.create", bodies.create(guest), deadline=deadline)
        await self.api.put("vm.boot", deadline=deadline)

    async def reconnect(self, deadline: float) -> None:
        """Of a machine that another process started: whether its VMM answers."""
        await self.api.get("vmm.ping", deadline)

    async def open_channel(self, deadline: float) -> AgentClient:
        """A new connection to the agent, which has said hello. Waits for a guest that is still booting."""
        return await greet(self._host.loop, await self._until_listening(deadline), deadline)

    async def _until_listening(self, deadline: float) -> socket.socket:
        while True:
            try:
                return await open_port(self._host.loop, self._host.directory, VSOCK_SOCKET, AGENT_PORT, deadline)
            except Unavailable:
                if time.monotonic() + _POLL_SECONDS > deadline:
                    raise
            await self._host.loop.sleep(_POLL_SECONDS)

    async def quit(self) -> None:
        """Ask the VMM to end; harmless when it is gone."""
        with suppress(KuasarError):
            await self.api.put("vmm.shutdown", deadline=time.monotonic() + _QUIT_SECONDS)

    def disconnect(self) -> None:
        """Remove the sockets; harmless to repeat."""
        for name in (API_SOCKET, VSOCK_SOCKET):
            path = f"{self._host.directory}/{name}"
            with suppress(FileNotFoundError):
                os.unlink(path)
            self._host.released("socket", path)
