"""A vsock of one machine by a daemon of its own (``vhost-device-vsock``), where the host's kernel has none.

The daemon is a vhost-user device: it maps the machine's memory, so that has to be shared memory. To the host it is a
hybrid vsock (``hybrid_vsock.py``). It runs as the machine's user, in the sandbox's cgroup, and makes its two sockets in
``<sandbox directory>/vsock``, which it is given as a descriptor: it can reach no other directory of ours.

It must not be asked for a port before the guest has a driver: it would keep a processor busy until then, and may not
answer afterwards (0.3.0). So the guest knocks: it connects to port 1024 of the host, for which the daemon connects to a
socket of ours.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from functools import partial

from kuasar.backends.base import ROOT, Host, User
from kuasar.backends.channels import AGENT_PORT
from kuasar.backends.hybrid_vsock import open_port
from kuasar.backends.processes import HeldProcess, open_log
from kuasar.backends.sockets import connect, listen
from kuasar.core.errors import BackendFailed, DeadlineExceeded, Unavailable, wrap

GUEST_CID = 3
"""The same for each machine: its daemon knows no other."""
_DEVICE_SOCKET, _PORTS_SOCKET = "device.sock", "ports.sock"
_KNOCK_SOCKET = f"{_PORTS_SOCKET}_{AGENT_PORT}"
_POLL_SECONDS = 0.002
_START_SECONDS = 10.0
_KILL_SECONDS = 5.0


class VsockDaemon:
    """The daemon of one machine. Started before the VMM, adopted by later workers, freed by :meth:`release`."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.process = HeldProcess(host, "vsock")
        self.directory = f"{host.directory}/vsock"
        self._knocking: socket.socket | None = None

    def start(self, binary: str, cgroup: str, log_path: str, user: User) -> None:
        """Start it. Undone by :meth:`release`. Raises :class:`BackendFailed`."""
        shutil.rmtree(self.directory, ignore_errors=True)  # of a start that was given up
        try:
            os.mkdir(self.directory, 0o700)
            if user != ROOT:
                os.chown(self.directory, user.uid, user.gid)
            self._knocking = listen(self.directory, _KNOCK_SOCKET)
            self._knocking.setblocking(False)
            os.chown(f"{self.directory}/{_KNOCK_SOCKET}", user.uid, user.gid)
            place = os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise wrap(exc, f"cannot make {self.directory}") from exc
        try:
            with open_log(log_path) as log_file:
                fds = [place]
                self.process.take(
                    partial(self._host.start_program, argv(binary, 3), log_file.fileno(), fds, cgroup, user)
                )
        finally:
            os.close(place)

    async def connect_device(self, deadline: float) -> socket.socket:
        """The connection on which the VMM speaks vhost-user; the daemon takes one at a time. Raises
        :class:`Unavailable` when it ends instead, DeadlineExceeded."""
        limit = min(deadline, time.monotonic() + _START_SECONDS)
        while True:  # it makes the socket itself, and nothing tells of it
            try:
                return connect(self.directory, _DEVICE_SOCKET, "the vsock daemon")
            except BackendFailed as exc:
                if not self.process.alive:
                    raise Unavailable("the vsock daemon (vhost-device-vsock) ended at its start") from exc
            if time.monotonic() > limit:
                raise DeadlineExceeded("the vsock daemon (vhost-device-vsock) does not listen")
            await self._host.loop.sleep(_POLL_SECONDS)

    async def open_port(self, port: int, deadline: float) -> socket.socket:
        """See :func:`kuasar.backends.hybrid_vsock.open_port`. Waits for the knock of a guest that boots; one that was
        adopted has knocked."""
        if self._knocking is not None:
            listener = self._knocking
            await self._host.loop.wait_for(
                self._host.loop.wait_readable(listener.fileno()), deadline, "the guest's knock on its vsock"
            )
            self._stop_waiting()
        return await open_port(self._host.loop, self.directory, _PORTS_SOCKET, port, deadline)

    def _stop_waiting(self) -> None:
        if self._knocking is not None:
            self._knocking.close()
            self._knocking = None

    async def release(self) -> None:
        """End it, also that of an earlier worker, and remove what it made; harmless to repeat."""
        self._stop_waiting()
        if self.process.pid == 0:
            self.process.adopt()
        await self.process.kill(time.monotonic() + _KILL_SECONDS)
        self.process.release()
        shutil.rmtree(self.directory, ignore_errors=True)


def argv(binary: str, directory: int) -> list[str]:
    """The daemon's argument list; ``directory``: the descriptor of where it makes its sockets."""
    place = f"/proc/self/fd/{directory}"
    sockets = [f"--socket={place}/{_DEVICE_SOCKET}", f"--uds-path={place}/{_PORTS_SOCKET}"]
    return [binary, f"--guest-cid={GUEST_CID}", *sockets]
