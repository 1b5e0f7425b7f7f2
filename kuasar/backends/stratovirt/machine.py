"""One StratoVirt process and its sockets: started, taken over, ended.

StratoVirt makes its sockets itself, in the directory that it works in, and removes them when it ends by itself.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from kuasar.agent.client import AgentClient
from kuasar.backends.base import ROOT, Host, Place
from kuasar.backends.channels import greet
from kuasar.backends.processes import HeldProcess, open_log
from kuasar.backends.qmp import Monitor
from kuasar.backends.share import SOCKET as SHARE_SOCKET
from kuasar.backends.sockets import connect
from kuasar.backends.stratovirt.argv import AGENT_SOCKET, QMP_SOCKET, Guest, build
from kuasar.core import serial
from kuasar.core.errors import BackendFailed, DeadlineExceeded, KuasarError, Unavailable, wrap

_POLL_SECONDS = 0.005
_QUIT_SECONDS = 2.0


@dataclass(frozen=True)
class Placement:
    """Where a machine runs."""

    log_path: str
    cgroup: str = ""


class Machine:
    """A StratoVirt in the directory of ``host``; ``process`` holds it. ``on_event`` gets the monitor's events."""

    def __init__(self, host: Host, process: HeldProcess, on_event: Callable[[str, dict[str, Any]], None]) -> None:
        self._host = host
        self._process = process
        self._on_event = on_event
        self._monitor: Monitor | None = None

    @property
    def share_path(self) -> str:
        """Where StratoVirt finds virtiofsd's socket: it looks up the real path of what is there, which may be longer
        than an address can hold, so the socket has a second, short name meanwhile."""
        name = hashlib.sha256(self._host.directory.encode()).hexdigest()[:16]
        return f"{self._host.state_dir}/{name}.sock"

    @property
    def monitor(self) -> Monitor:
        """The open monitor. Raises :class:`BackendFailed` while there is none."""
        if self._monitor is None:
            raise BackendFailed("StratoVirt's monitor is not connected")
        return self._monitor

    async def boot(self, binary: str, guest: Guest, placement: Placement, fds: Sequence[int], deadline: float) -> None:
        """Start a machine; ``fds`` (of taps) become 3, 4 and so on in it. What is left of a failure is undone by ending
        the process and :meth:`disconnect`."""
        directory = self._host.directory
        for name in (QMP_SOCKET, AGENT_SOCKET):
            self._host.acquiring("socket", f"{directory}/{name}")
            with suppress(FileNotFoundError):  # of a machine whose start was given up
                os.unlink(f"{directory}/{name}")
        with open_log(guest.console) as console:  # so that nobody else can read it
            os.ftruncate(console.fileno(), 0)  # StratoVirt writes from the start
        if guest.share:
            self._name_share()
        with open_log(placement.log_path) as log_file:
            argv, place = build(binary, guest), Place(directory)
            host = self._host
            self._process.take(partial(host.start_program, argv, log_file.fileno(), fds, placement.cgroup, ROOT, place))
        await self._connect(deadline)
        self._forget_share()  # it is connected by now

    async def reconnect(self, deadline: float) -> None:
        """The monitor of a machine, as of one that another process started."""
        self.disconnect_monitor()
        await self._connect(deadline)

    async def open_channel(self, deadline: float) -> AgentClient:
        """A new connection to the agent, which has said hello; an earlier one ends."""
        port = connect(self._host.directory, AGENT_SOCKET, "the machine's port")
        try:
            await serial.open_connection(self._host.loop, port, deadline)
        except BaseException:
            port.close()
            raise
        return await greet(self._host.loop, port, deadline)

    async def quit(self) -> None:
        """Ask StratoVirt to end; harmless when it is gone."""
        if self._monitor is not None:
            with suppress(KuasarError):
                await self._monitor.execute("quit", deadline=time.monotonic() + _QUIT_SECONDS)

    def disconnect(self) -> None:
        """Close the monitor and remove the sockets; harmless to repeat."""
        self.disconnect_monitor()
        self._forget_share()
        for name in (QMP_SOCKET, AGENT_SOCKET):
            path = f"{self._host.directory}/{name}"
            with suppress(FileNotFoundError):
                os.unlink(path)
            self._host.released("socket", path)

    def _name_share(self) -> None:
        path = self.share_path
        self._forget_share()
        self._host.acquiring("socket", path)
        try:
            os.link(f"{self._host.directory}/{SHARE_SOCKET}", path)
        except OSError as exc:
            raise wrap(exc, "cannot give virtiofsd's socket a short name") from exc

    def _forget_share(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self.share_path)
        self._host.released("socket", self.share_path)

    def disconnect_monitor(self) -> None:
        """Close the monitor; StratoVirt serves the next client only then. Harmless to repeat."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    async def _connect(self, deadline: float) -> None:
        sock = await self._until_listening(deadline)
        monitor = Monitor(self._host.loop, self._on_event, lambda: None, "StratoVirt")
        try:
            await monitor.connect(sock, deadline)
        except BaseException:
            monitor.close()
            raise
        self._monitor = monitor

    async def _until_listening(self, deadline: float) -> socket.socket:
        """StratoVirt makes its socket when it has come so far; nothing tells of it. Raises :class:`Unavailable` when it
        ends instead, or :class:`DeadlineExceeded`."""
        while True:
            try:
                return connect(self._host.directory, QMP_SOCKET, "StratoVirt's monitor")
            except BackendFailed as exc:
                if not self._process.alive:
                    raise Unavailable("StratoVirt ended before its monitor could be reached") from exc
                if time.monotonic() + _POLL_SECONDS > deadline:
                    raise DeadlineExceeded("StratoVirt's monitor socket does not appear") from exc
            await self._host.loop.sleep(_POLL_SECONDS)
