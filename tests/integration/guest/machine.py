"""A guest under QEMU without acceleration, and a client of its agent that is as dumb as a test wants it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from guest import manifest
from kuasar.agent.protocol import Event, Frame, FrameReader, Hello, Reply, Request, encode
from kuasar.core import serial

MEMORY_MIB = 128
PORTS = 4
BOOT_SECONDS = 90.0
"""A boot takes 2-3 s on an idle machine; others may be using this one."""
PAGE = 4096
ANSWER_SECONDS = 30.0
_GONE = "DEVICE_DELETED"


class Qmp:
    """QEMU's own channel: one command after the other."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._file = stream.makefile("rwb")
        self._events: list[dict[str, Any]] = []
        self._read()
        self.call("qmp_capabilities")

    def call(self, command: str, **arguments: Any) -> Any:
        """What the command returns; an error of QEMU fails the test."""
        self._file.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        self._file.flush()
        while "return" not in (answer := self._read()):
            assert "event" in answer, answer
            self._events.append(answer)
        return answer["return"]

    def unplug(self, device: str) -> None:
        """Ask the guest to let go of a device; returns when it has."""
        self._events.clear()
        self.call("device_del", id=device)
        while not any(each["data"].get("device") == device for each in self._events if each["event"] == _GONE):
            self._events.append(self._read())

    def add_disk(self, serial: str, path: Path, port: int, read_only: bool = False) -> None:
        """Plug a disk into one of the machine's ports; node and device are called as its serial number."""
        file = {"driver": "file", "filename": str(path)}
        self.call("blockdev-add", **{"driver": "raw", "node-name": serial, "read-only": read_only, "file": file})
        self.call(
            "device_add", driver="virtio-blk-pci", id=f"dev-{serial}", bus=f"p{port}", drive=serial, serial=serial
        )

    def remove_disk(self, serial: str) -> None:
        """Take it out again."""
        self.unplug(f"dev-{serial}")
        self.call("blockdev-del", **{"node-name": serial})

    def migrate(self, path: Path) -> None:
        """Stop the machine and write its state, without its memory, to a file."""
        self.call("stop")
        self._share_memory()
        self.call("migrate", uri=f"exec:cat > {path}")
        while (status := self.call("query-migrate")["status"]) != "completed":
            assert status not in ("failed", "cancelled"), status

    def take_over(self, path: Path) -> None:
        """Go on from that state, in a machine that was started with ``incoming``."""
        self._share_memory()
        self.call("migrate-incoming", uri=f"exec:cat {path}")
        while self.call("query-status")["status"] == "inmigrate":
            pass
        self.call("cont")

    def _share_memory(self) -> None:
        capability = {"capability": "x-ignore-shared", "state": True}
        self.call("migrate-set-capabilities", capabilities=[capability])

    def close(self) -> None:
        """The machine runs on."""
        self._file.close()
        self._stream.close()

    def _read(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._file.readline())
        return answer


class Machine:
    """A running QEMU. ``directory`` holds the console, the memory and the socket of the agent's port."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path, qmp: Qmp) -> None:
        self.process = process
        self.directory = directory
        self.qmp = qmp
        self.deadline = time.monotonic() + BOOT_SECONDS

    @property
    def console(self) -> str:
        """What the guest has written so far."""
        return (self.directory / "console").read_text(errors="replace")

    def wait(self) -> int:
        """QEMU's exit code, within the deadline."""
        return self.process.wait(max(0.1, self.deadline - time.monotonic()))

    @property
    def memory(self) -> Path:
        """The file behind the guest's memory."""
        return self.directory / "memory"

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
        self.nonce = serial.make_nonce()
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

    def ask(self, op: str, body: dict[str, Any] | None = None, timeout: float = ANSWER_SECONDS) -> Reply:
        """The answer, whichever."""
        self.stream.sendall(encode(Request(1, os.urandom(8).hex(), op, body or {}, timeout)))
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
        self._frames.clear()  # of the connection before
        self._frames += self._reader.feed(rest)
        return before

    def _receive(self) -> bytes:
        data = self.stream.recv(65536)
        assert data, "the machine is gone"
        return data


@contextmanager
def start_machine(
    image: manifest.Image,
    directory: Path,
    root_disk: Path | None,
    *,
    port: bool = True,
    console: bool = False,
    can_grow: bool = True,
    incoming: bool = False,
    memory: Path | None = None,
) -> Iterator[Machine]:
    """Boot the image in ``directory`` with ``root_disk`` on virtio-blk; ended, whatever state it is in, with the block.

    ``console``: its port is a virtio console's; ``can_grow``: has room for what is plugged in later; ``incoming``: wait
    for a state instead of booting; ``memory``: start with this content. What the console said is in the output of a
    test that fails.
    """
    with tempfile.TemporaryDirectory(prefix="kuasar-guest-") as name:
        home = Path(name)
        argv = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        backing = f"memory-backend-file,id=memory,size={MEMORY_MIB}M,mem-path={home}/memory,share=on"
        argv += ["-accel", "tcg", "-object", backing, "-M", "q35,memory-backend=memory"]
        argv += ["-m", f"{MEMORY_MIB}M" + (",slots=2,maxmem=1G" if can_grow else "")]
        argv += ["-smp", "1,maxcpus=2" if can_grow else "1"]
        for number in range(PORTS if can_grow else 0):
            argv += ["-device", f"pcie-root-port,id=p{number},chassis={number + 1},slot={number + 1}"]
        if incoming:
            argv += ["-incoming", "defer"]
        if memory is not None:
            copy_sparsely(memory, home / "memory")
        argv += ["-kernel", str(directory / manifest.KERNEL), "-initrd", str(directory / manifest.INITRD)]
        argv += ["-append", f"console=ttyS0 quiet panic=-1 cryptomgr.notests {image.command_line}"]
        argv += ["-serial", f"file:{home}/console", "-device", "virtio-serial-pci"]
        # We make the socket and QEMU inherits it, so that nobody has to wait for it.
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{home}/agent")
        listener.listen(1)
        if port:
            kind = "virtconsole" if console else "virtserialport"
            argv += ["-chardev", f"socket,id=agent,fd={listener.fileno()},server=on,wait=off"]
            argv += ["-device", f"{kind},chardev=agent,name=kuasar.agent"]
        if root_disk is not None:
            argv += ["-drive", f"if=none,id=root,file={root_disk},format=raw,readonly=on"]
            argv += ["-device", "virtio-blk-pci,drive=root"]
        ours, theirs = socket.socketpair()
        argv += ["-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control"]
        (home / "console").touch()
        with open(home / "errors", "wb") as errors, listener, theirs:
            passed = (listener.fileno(), theirs.fileno())
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, pass_fds=passed)
        ours.settimeout(ANSWER_SECONDS)
        try:
            machine = Machine(process, home, Qmp(ours))
            yield machine
            machine.qmp.close()
        finally:
            process.kill()
            process.wait()
            ours.close()
            print("console of the guest:", (home / "console").read_text(errors="replace"), sep="\n")
            print((home / "errors").read_text())


def copy_sparsely(source: Path, target: Path) -> None:
    """Copy a file without its pages of zeros."""
    with open(source, "rb") as data, open(target, "wb") as file:
        file.truncate(source.stat().st_size)
        for number, page in enumerate(pages(data)):
            if page.count(0) != len(page):
                file.seek(number * PAGE)
                file.write(page)


def pages(data: BinaryIO) -> Iterator[bytes]:
    """The pages of an open file."""
    while page := data.read(PAGE):
        yield page
