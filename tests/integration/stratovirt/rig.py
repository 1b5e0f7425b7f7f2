"""A StratoVirt in a directory of its own, as the worker starts it: the stand-in, or the true program."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kuasar.backends.making import MakerHost
from kuasar.backends.processes import HeldProcess
from kuasar.backends.stratovirt.argv import MICROVM, Card, Guest
from kuasar.backends.stratovirt.devices import AskAgent, Devices, Ports, Replaceable
from kuasar.backends.stratovirt.machine import Machine, Placement
from kuasar.core.aio import Loop

PROGRAM = Path(__file__).parents[2] / "standins" / "stratovirt.py"


class Rig:
    """One machine. What the agent is asked is in ``asked``, and granted unless there is an ``ask``."""

    def __init__(self, loop: Loop, directory: Path, kind: str) -> None:
        self.loop = loop
        self.directory = directory
        self.kind = kind
        self.events: list[tuple[str, Mapping[str, Any]]] = []
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self.ask: AskAgent | None = None
        for name in ("kernel", "initrd", "root"):
            (directory / name).write_bytes(bytes(4096))
        (directory / "firmware").write_bytes(bytes(256 * 1024))
        self.host = MakerHost(loop, str(directory))
        self.process = HeldProcess(self.host, "vmm")
        self.machine = Machine(self.host, self.process, self._on_event)
        self.devices = self.make_devices()

    def make_devices(self) -> Devices:
        """As a worker does, or its successor."""
        if self.kind == MICROVM:
            return Replaceable(self.host, lambda: self.machine.monitor, self._ask_agent)
        return Ports(self.host, lambda: self.machine.monitor, 2)

    def _on_event(self, name: str, data: dict[str, Any]) -> None:
        self.events.append((name, data))
        self.devices.on_event(name, data)

    async def _ask_agent(self, op: str, body: Mapping[str, Any], deadline: float | None) -> Any:
        self.asked.append((op, body))
        return await self.ask(op, body, deadline) if self.ask is not None else {}

    def guest(self, **changes: Any) -> Guest:
        """A small machine."""
        wish: dict[str, Any] = {
            "name": "kuasar-test",
            "machine": self.kind,
            "vcpus": 1,
            "memory_bytes": 128 << 20,
            "kernel": f"{self.directory}/kernel",
            "initrd": f"{self.directory}/initrd",
            "root": f"{self.directory}/root",
            "firmware": f"{self.directory}/firmware",
            "command_line": "console=ttyS0",
            "console": f"{self.directory}/console",
            "share": "",
            "cards": (),
            "ports": 2,
        }
        return Guest(**{**wish, **changes})

    def boot(self, binary: str, seconds: float = 60.0, fds: Sequence[int] = (), **changes: Any) -> None:
        """Start it. Raises what :meth:`Machine.boot` does."""
        placement = Placement(f"{self.directory}/log")
        deadline = time.monotonic() + seconds
        self.loop.run(self.machine.boot(binary, self.guest(**changes), placement, fds, deadline))

    def stand_in(self, faults: Mapping[str, str] | None = None, **settings: str) -> str:
        """Path of the stand-in; a program of ours starts with no environment, so its settings are in a script."""
        words = {"STANDIN_JOURNAL": f"{self.directory}/journal", "STANDIN_FAULTS": json.dumps(dict(faults or {}))}
        return write_stand_in(self.directory, **words, **settings)

    @property
    def journal(self) -> list[tuple[str, dict[str, Any]]]:
        """All commands so far but the negotiation: name, arguments."""
        lines = (self.directory / "journal").read_text(encoding="utf-8").splitlines()
        calls = [(each["call"], each["arguments"]) for each in map(json.loads, lines)]
        return [each for each in calls if each[0] != "qmp_capabilities"]

    def execute(self, command: str, **arguments: Any) -> Any:
        """One QMP command, by the worker's own client."""
        return self.loop.run(self.machine.monitor.execute(command, arguments, time.monotonic() + 60.0))

    def plug(self, name: str, seconds: float = 60.0) -> None:
        """Plug in a disk of its own."""
        path = self.directory / f"{name}.img"
        path.write_bytes(bytes(8192))
        self.loop.run(self.devices.plug(name, str(path), False, time.monotonic() + seconds))

    def unplug(self, name: str) -> None:
        """Take it out again."""
        self.loop.run(self.devices.unplug(name))

    @property
    def log(self) -> str:
        """What the program has said."""
        return (self.directory / "log").read_text(encoding="utf-8")

    def end(self) -> None:
        """Whatever there is."""
        self.loop.run(self.process.kill(time.monotonic() + 30.0))
        self.process.release()
        self.machine.disconnect()


def write_stand_in(directory: Path, **settings: str) -> str:
    """A program ``stratovirt`` in ``directory``, which is the stand-in."""
    path = directory / "stratovirt"
    lines = [f"export {name}={shlex.quote(value)}" for name, value in settings.items()]
    path.write_text("\n".join(["#!/bin/sh", *lines, f'exec {sys.executable} {PROGRAM} "$@"', ""]))
    path.chmod(0o755)
    return str(path)


def raw_client(directory: Path) -> socket.socket:
    """A connection to the monitor, past its greeting, by nobody's client."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(60.0)
    here = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        sock.connect(f"/proc/self/fd/{here}/qmp.sock")
    finally:
        os.close(here)
    assert b"StratoVirt" in read_line(sock)
    return sock


def read_line(sock: socket.socket) -> bytes:
    """One line of the monitor's."""
    line = b""
    while not line.endswith(b"\n"):
        byte = sock.recv(1)
        assert byte, "the monitor has closed the connection"
        line += byte
    return line


def card(number: int, tap: int) -> Card:
    """A network interface on descriptor ``tap``."""
    return Card(f"nic{number}", f"02:00:00:00:00:{number:02x}", (tap,))
