"""The channel between a QEMU machine and its agent, one class for each kind; which one is chosen for a machine.

==================  ==================================  ==============================================================
kind                needs                               QEMU inherits
==================  ==================================  ==============================================================
vsock               ``/dev/vhost-vsock``                that device, with a context id claimed
vhost-user-vsock    ``vhost-device-vsock``, no template the connection to the daemon
virtio-serial       nothing                             a listening socket
==================  ==================================  ==============================================================

QEMU writes down the state of a machine with the first or the last of them, so these have templates.
"""

from __future__ import annotations

import os
import shutil
import socket
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import ClassVar

from kuasar.backends import host_vsock
from kuasar.backends.base import Host, User
from kuasar.backends.channels import AGENT_PORT, AUTO, VHOST_USER_VSOCK, VIRTIO_SERIAL, VSOCK, until_listening
from kuasar.backends.processes import HeldProcess
from kuasar.backends.sockets import connect, listen
from kuasar.backends.vsock_daemon import GUEST_CID, VsockDaemon
from kuasar.core import log, serial
from kuasar.core.config import Engine
from kuasar.core.errors import BackendFailed

_SERIAL_SOCKET = "agent.sock"
NOT_IN_A_TEMPLATE = "QEMU cannot keep a vhost-user-vsock in a template"
_DAEMON_HINT = "name it with `vhost_device_vsock` of the engine"


class Channel(ABC):
    """Of one machine; its facts are in the sandbox's record, so a later worker makes the same one."""

    kind: ClassVar[str]
    guest_cid = 0
    """The machine's context id, where it has one."""
    helper: HeldProcess | None = None
    """A process without which the channel is dead."""

    def __init__(self, host: Host) -> None:
        self._host = host

    @abstractmethod
    async def prepare(self, binary: str, cgroup: str, user: User, log_path: str, deadline: float) -> int:
        """What is needed before the VMM is started: the descriptor that it inherits, which the caller closes.
        ``binary``: of a helper. Undone by :meth:`release`."""

    @abstractmethod
    async def open(self, deadline: float) -> socket.socket:
        """A new connection to the agent, whose hello comes next. Waits for a guest that is still booting."""

    def adopt(self) -> None:  # noqa: B027 - most have nothing to take over
        """Take over what an earlier worker prepared."""

    async def release(self) -> None:  # noqa: B027 - what the VMM inherits is freed with it
        """Free it; harmless to repeat."""


class _Serial(Channel):
    kind = VIRTIO_SERIAL

    async def prepare(self, binary: str, cgroup: str, user: User, log_path: str, deadline: float) -> int:
        self._host.acquiring("socket", f"{self._host.directory}/{_SERIAL_SOCKET}")
        return listen(self._host.directory, _SERIAL_SOCKET).detach()

    async def open(self, deadline: float) -> socket.socket:
        """An earlier connection ends."""
        port = connect(self._host.directory, _SERIAL_SOCKET, "the machine's serial port")
        try:
            await serial.open_connection(self._host.loop, port, deadline)
        except BaseException:
            port.close()
            raise
        return port

    async def release(self) -> None:
        path = f"{self._host.directory}/{_SERIAL_SOCKET}"
        with suppress(FileNotFoundError):
            os.unlink(path)
        self._host.released("socket", path)


class _Vsock(Channel):
    kind = VSOCK

    async def prepare(self, binary: str, cgroup: str, user: User, log_path: str, deadline: float) -> int:
        device, self.guest_cid = host_vsock.open_device()
        try:
            self._host.remember(cid=self.guest_cid)
        except BaseException:
            os.close(device)
            raise
        return device

    async def open(self, deadline: float) -> socket.socket:
        loop, cid = self._host.loop, self.guest_cid
        return await until_listening(loop, lambda limit: host_vsock.open_port(loop, cid, AGENT_PORT, limit), deadline)

    def adopt(self) -> None:
        self.guest_cid = int(self._host.machine.get("cid", 0))


class _VhostUserVsock(Channel):
    kind = VHOST_USER_VSOCK
    guest_cid = GUEST_CID

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._daemon = VsockDaemon(host)
        self.helper = self._daemon.process

    async def prepare(self, binary: str, cgroup: str, user: User, log_path: str, deadline: float) -> int:
        self._daemon.start(binary, cgroup, log_path, user)
        return (await self._daemon.connect_device(deadline)).detach()

    async def open(self, deadline: float) -> socket.socket:
        return await until_listening(self._host.loop, lambda limit: self._daemon.open_port(AGENT_PORT, limit), deadline)

    def adopt(self) -> None:
        self._daemon.process.adopt()

    async def release(self) -> None:
        await self._daemon.release()


_KINDS = {each.kind: each for each in (_Serial, _Vsock, _VhostUserVsock)}


def make_channel(kind: str, host: Host) -> Channel:
    """The channel of a machine of this host. Raises ``KeyError`` for what :func:`choose` never gives."""
    return _KINDS[kind](host)


def choose(settings: Engine, device: str = host_vsock.DEVICE) -> tuple[str, str]:
    """Kind of channel and the helper's program. Left to us, a daemon is used only by machines that boot anyway: what
    it would cost is the template. Raises :class:`BackendFailed` saying why the configured one cannot be used."""
    wanted = settings.channel
    if wanted in (AUTO, VSOCK):
        reason = host_vsock.why_not(device)
        if not reason:
            return VSOCK, ""
        _require(wanted, reason)
    if wanted == VHOST_USER_VSOCK or (wanted == AUTO and not settings.template):
        found = shutil.which(settings.vhost_device_vsock)
        if found is not None:
            return VHOST_USER_VSOCK, os.path.realpath(found)
        _require(wanted, f"there is no program {settings.vhost_device_vsock}; {_DAEMON_HINT}")
    return VIRTIO_SERIAL, ""


def _require(wanted: str, reason: str) -> None:
    if wanted != AUTO:
        raise BackendFailed(f'the channel to the agent: channel = "{wanted}" cannot be used: {reason}')
    log.debug("not used as channel to the agent", reason=reason)
