"""What the stand-in does with its guest: that of ``tests/standins/guest``, or an agent that somebody else has started.

``STANDIN_HARDWARE`` is the socket of the hardware's server; else ``STANDIN_AGENT`` that of an agent, for tests of the
VMM alone.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from tests.standins.stratovirt_options import Machine

Value = TypeVar("Value")


class Guest(Protocol):
    """A machine's inside. Any thread may call."""

    def boot(self) -> None:
        """Power on."""

    def connect(self, port: int) -> socket.socket:
        """A connection to the agent. Raises ``ConnectionRefusedError`` while nobody listens."""

    def plug_disk(self, name: str, path: str, read_only: bool) -> None:
        """A disk appears, or gets a content."""

    def unplug(self, name: str) -> None:
        """It goes."""

    def pause(self) -> None:
        """Nothing in it moves."""

    def resume(self) -> None:
        """It does again."""

    def kill(self) -> None:
        """Power off, at once."""

    def wait(self) -> None:
        """Until it has ended."""


class Elsewhere:
    """Only an agent, at the unix socket ``agent``; empty: nobody listens."""

    def __init__(self, agent: str) -> None:
        self._agent = agent
        self._disks: set[str] = set()

    def boot(self) -> None:
        """It runs already."""

    def connect(self, port: int) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(self._agent or "/nowhere")
        except OSError as exc:
            connection.close()
            raise ConnectionRefusedError from exc
        return connection

    def plug_disk(self, name: str, path: str, read_only: bool) -> None:
        self._disks.add(name)

    def unplug(self, name: str) -> None:
        self._disks.remove(name)

    def pause(self) -> None:
        """It cannot."""

    def resume(self) -> None:
        """See above."""

    def kill(self) -> None:
        """It is not ours."""

    def wait(self) -> None:
        while True:
            signal.pause()


class Inside:
    """A guest with the real image and agent, behind the hardware's server."""

    def __init__(self, machine: Machine, hardware: str) -> None:
        from tests.standins.guest.client import Guest as Client

        self._machine = machine
        self._client = Client(hardware)
        self._turn = threading.Lock()

    def boot(self) -> None:
        machine = self._machine
        root = next(drive for _, _, drive in machine.disks)
        disk = os.open(root.path, os.O_RDONLY)
        console = os.open(machine.console, os.O_WRONLY | os.O_CREAT, 0o600)
        for _, mac, taps in machine.cards:
            self._do(self._client.plug_nic, mac, 1500, taps)
        if machine.share is not None:
            tag, path = machine.share
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            server.connect(path)
            # The server is found by the directory of its socket, which has another name here: that where we run.
            self._do(self._client.plug_connected_share, tag, server, f"{os.getcwd()}/virtiofsd.sock")
        self._do(self._client.boot, machine.command_line, disk, console, machine.vcpus, machine.memory_bytes)
        os.close(disk)
        os.close(console)

    def connect(self, port: int) -> socket.socket:
        sock = self._do(self._client.connect, port)
        if sock is None:
            raise ConnectionRefusedError
        return sock

    def plug_disk(self, name: str, path: str, read_only: bool) -> None:
        disk = os.open(path, os.O_RDONLY if read_only else os.O_RDWR)
        try:
            self._do(self._client.plug_disk, name, disk, read_only)
        finally:
            os.close(disk)

    def unplug(self, name: str) -> None:
        self._do(self._client.unplug, name)

    def pause(self) -> None:
        self._do(self._client.pause)

    def resume(self) -> None:
        self._do(self._client.resume)

    def kill(self) -> None:
        self._do(self._client.kill)

    def wait(self) -> None:
        self._client.wait()

    def _do(self, verb: Callable[..., Value], *args: Any) -> Value:
        with self._turn:
            return verb(*args)


def make_guest(machine: Machine) -> Guest:
    """The guest of ``machine``."""
    hardware = os.environ.get("STANDIN_HARDWARE", "")
    return Inside(machine, hardware) if hardware else Elsewhere(os.environ.get("STANDIN_AGENT", ""))
