"""A guest under QEMU without acceleration, and a client of its agent that is as dumb as a test wants it."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guest import manifest
from guest.pid1 import serial
from kuasar.agent.protocol import Event, Frame, FrameReader, Hello, Reply, Request, encode

BOOT_SECONDS = 90.0
"""A boot takes 2-3 s on an idle machine; others may be using this one."""
ANSWER_SECONDS = 30.0


class Machine:
    """A running QEMU. ``directory`` holds the console and the socket of the agent's port."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        self.process = process
        self.directory = directory
        self.deadline = time.monotonic() + BOOT_SECONDS

    @property
    def console(self) -> str:
        """What the guest has written so far."""
        return (self.directory / "console").read_text(errors="replace")

    def wait(self) -> int:
        """QEMU's exit code, within the deadline."""
        return self.process.wait(max(0.1, self.deadline - time.monotonic()))

    def connect(self) -> AgentConnection:
        """A new connection to the agent; waits for the boot."""
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(max(0.1, self.deadline - time.monotonic()))
        stream.connect(str(self.directory / "agent"))
        return AgentConnection(stream)


class AgentConnection:
    """One connection through the serial port, from its opening on."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self.events: list[Event] = []
        self._reader = FrameReader()
        self._frames: list[Frame] = []
        self.nonce = os.urandom(serial.NONCE_BYTES)
        stream.sendall(serial.OPEN + self.nonce)
        self.read_until(serial.READY + self.nonce)
        stream.settimeout(ANSWER_SECONDS)
        self.hello = self.expect_hello()

    def expect_hello(self) -> Hello:
        """The frame that every connection begins with."""
        hello = self._next()
        assert isinstance(hello, Hello)
        return hello

    def call(self, op: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The body of the answer; an error of the agent fails the test."""
        reply = self.ask(op, body)
        assert reply.error is None, reply.error
        assert reply.body is not None
        return reply.body

    def ask(self, op: str, body: dict[str, Any] | None = None) -> Reply:
        """The answer, whichever."""
        self.stream.sendall(encode(Request(1, os.urandom(8).hex(), op, body or {}, ANSWER_SECONDS)))
        while True:
            frame = self._next()
            if isinstance(frame, Reply):
                return frame
            assert isinstance(frame, Event)
            self.events.append(frame)

    def __enter__(self) -> AgentConnection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stream.close()

    def _next(self) -> Frame:
        while not self._frames:
            self._frames += self._reader.feed(self._receive())
        return self._frames.pop(0)

    def read_until(self, marker: bytes) -> bytes:
        """What comes before ``marker``; what comes after it are frames."""
        data = bytearray()
        while marker not in data:
            data += self._receive()
        before, _, rest = bytes(data).partition(marker)
        self._frames += self._reader.feed(rest)
        return before

    def _receive(self) -> bytes:
        data = self.stream.recv(65536)
        assert data, "the machine is gone"
        return data


@contextmanager
def start_machine(
    image: manifest.Image, directory: Path, root_disk: Path | None, *, port: bool = True, extra: Sequence[str] = ()
) -> Iterator[Machine]:
    """Boot the image in ``directory`` with ``root_disk`` on virtio-blk; ended, whatever state it is in, with the block.
    What the console said is in the output of a test that fails."""
    with tempfile.TemporaryDirectory(prefix="kuasar-guest-") as name:
        home = Path(name)
        argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        argv += ["-accel", "tcg", "-M", "q35", "-m", "128", "-smp", "1"]
        argv += ["-kernel", str(directory / manifest.KERNEL), "-initrd", str(directory / manifest.INITRD)]
        argv += ["-append", f"console=ttyS0 quiet panic=-1 cryptomgr.notests {image.command_line}"]
        argv += ["-serial", f"file:{home}/console", "-device", "virtio-serial-pci"]
        # We make the socket and QEMU inherits it, so that nobody has to wait for it.
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{home}/agent")
        listener.listen(1)
        if port:
            argv += ["-chardev", f"socket,id=agent,fd={listener.fileno()},server=on,wait=off"]
            argv += ["-device", "virtserialport,chardev=agent,name=kuasar.agent"]
        if root_disk is not None:
            argv += ["-drive", f"if=none,id=root,file={root_disk},format=raw,readonly=on"]
            argv += ["-device", "virtio-blk-pci,drive=root"]
        (home / "console").touch()
        with open(home / "errors", "wb") as errors, listener:
            process = subprocess.Popen(
                [*argv, *extra],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=(listener.fileno(),),
            )
        machine = Machine(process, home)
        try:
            yield machine
        finally:
            process.kill()
            process.wait()
            print("console of the guest:", machine.console, (home / "errors").read_text(), sep="\n")
