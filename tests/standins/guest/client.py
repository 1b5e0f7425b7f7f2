"""The end of a guest that its VMM has: asks the hardware's server for what a VMM does by itself.

Files, taps and sockets are opened by the VMM, with its own rights, and passed as descriptors.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

_MOST_BYTES = 1 << 16
_MOST_FDS = 64


class GuestError(Exception):
    """The hardware says no, and why."""


class Guest:
    """One machine's inside. ``hardware``: path of the server's socket, or a connection to it.

    Cards, shares and disks may be plugged in before :meth:`boot`, and are there from the beginning then. Raises
    :class:`GuestError` for whatever goes wrong. One thread at a time.
    """

    def __init__(self, hardware: str | socket.socket) -> None:
        if isinstance(hardware, str):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            sock.connect(hardware)
        else:
            sock = hardware
        self._socket = sock
        self._shares: list[socket.socket] = []
        self.ended, theirs = os.pipe()
        """Readable when the guest has ended, in whatever way: see :meth:`wait`."""
        try:
            self._ask("hello", fds=[theirs])
        finally:
            os.close(theirs)

    def boot(
        self, command_line: str, root: int, console: int, vcpus: int = 1, memory: int = 0, clock_offset_ns: int = 0
    ) -> None:
        """Start the first process from the root disk ``root``, with standard output and error to ``console``. ``root``
        and ``console`` are open files and stay the caller's; ``memory`` in bytes; the clock of the guest is off by
        ``clock_offset_ns``, as that of a restored one is."""
        self._ask(
            "boot",
            fds=[root, console],
            command_line=command_line,
            vcpus=vcpus,
            memory=memory,
            clock_offset_ns=clock_offset_ns,
        )

    def connect(self, port: int) -> socket.socket | None:
        """A connection to a vsock port of the guest; None where nobody listens (yet)."""
        _, fds = self._ask("connect", port=port)
        return socket.socket(fileno=fds[0]) if fds else None

    def plug_nic(self, mac: str, mtu: int, taps: Sequence[int]) -> None:
        """A card with this address; frames go to and from the open taps, of which the guest keeps copies."""
        self._ask("plug_nic", fds=taps, mac=mac, mtu=mtu)

    def plug_share(self, tag: str, path: str) -> None:
        """What the file server behind the unix socket ``path`` serves can be mounted as ``tag``."""
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            server.connect(path)
        except OSError as exc:
            server.close()
            raise GuestError(f"cannot connect to {path}: {exc.strerror}") from exc
        self.plug_connected_share(tag, server, path)

    def plug_connected_share(self, tag: str, server: socket.socket, path: str) -> None:
        """As :meth:`plug_share`, on a connection that is there already and belongs to the guest from now on."""
        self._shares.append(server)
        self._ask("plug_share", tag=tag, path=os.path.abspath(path))

    def plug_disk(self, name: str, disk: int, read_only: bool) -> None:
        """A disk with the serial number ``name`` on the open block device or file ``disk``. One that is there already
        gets another content."""
        self._ask("plug_disk", fds=[disk], name=name, read_only=read_only)

    def unplug(self, name: str) -> None:
        """Take a disk away; harmless when it is gone."""
        self._ask("unplug", name=name)

    def resize(self, vcpus: int, memory: int) -> None:
        """Have the guest see so many processors and bytes of memory."""
        self._ask("resize", vcpus=vcpus, memory=memory)

    def pause(self) -> None:
        """Freeze every process of it."""
        self._ask("freeze", frozen=True)

    def resume(self) -> None:
        """Thaw them."""
        self._ask("freeze", frozen=False)

    def press_power_button(self) -> None:
        """As the host's side of ACPI does; the guest may ignore it."""
        self._ask("power_button")

    def clock_offset_ns(self) -> int:
        """By how much the guest's clock is ahead of the host's."""
        answer, _ = self._ask("clock")
        return int(answer["offset_ns"])

    def kill(self) -> None:
        """End it at once; returns when every process of it is dead. Harmless to repeat."""
        self._ask("kill")

    def wait(self) -> str:
        """Blocks until it has ended: ``power-off``, ``reset``, ``killed``, or ``panic`` (its first process died)."""
        said = b""
        while data := os.read(self.ended, 64):
            said += data
        return said.decode() or "killed"

    def close(self) -> None:
        """Let go of it: a guest that runs is killed. Harmless to repeat."""
        for sock in (self._socket, *self._shares):
            sock.close()
        if self.ended >= 0:
            os.close(self.ended)
            self.ended = -1

    def _ask(self, verb: str, fds: Sequence[int] = (), **body: Any) -> tuple[dict[str, Any], list[int]]:
        try:
            send(self._socket, {"verb": verb, **body}, fds)
            answer, received = receive(self._socket)
        except OSError as exc:
            raise GuestError(f"{verb}: the hardware is gone: {exc.strerror}") from exc
        if answer is None:
            raise GuestError(f"{verb}: the hardware is gone")
        if "error" in answer:
            raise GuestError(f"{verb}: {answer['error']}")
        return answer, received


def send(sock: socket.socket, body: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """One message with descriptors."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([json.dumps(body).encode()], rights)


def receive(sock: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """The next message and its descriptors, which are the caller's; None at the end."""
    data, ancillary, _, _ = sock.recvmsg(_MOST_BYTES, socket.CMSG_SPACE(_MOST_FDS * 4), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for _, _, each in ancillary:
        fds.frombytes(each[: len(each) - len(each) % fds.itemsize])
    return (json.loads(data) if data else None), list(fds)
