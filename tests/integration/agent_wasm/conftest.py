"""Fixtures: an agent's double in a process of its own, root file systems, containers whose output is collected."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from kuasar.core.errors import from_wire
from tests.wasm import NAMES, module

TIMEOUT = 20.0


class Pipe:
    """One end for the container, one for the test."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe2(os.O_CLOEXEC)

    def collect(self) -> bytes:
        """Everything until the container has closed its end."""
        data = b""
        while chunk := self.take():
            data += chunk
        return data

    def take(self) -> bytes:
        """What is there, waiting for something to be there."""
        if not select.select([self.read], [], [], TIMEOUT)[0]:
            raise TimeoutError("no output")
        return os.read(self.read, 1 << 20)

    def close_read(self) -> None:
        """Close the reading end, once: its number may be another file's by now."""
        fd, self.read = self.read, -1
        if fd >= 0:
            os.close(fd)

    def close_write(self) -> None:
        """Close the writing end, once."""
        fd, self.write = self.write, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Close what is open."""
        self.close_read()
        self.close_write()


class Container:
    """One container made through the double."""

    def __init__(self, agent: Agent, name: str, pid: int, stdin: Pipe, stdout: Pipe, stderr: Pipe) -> None:
        self.agent, self.name, self.pid = agent, name, pid
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr

    def start(self) -> None:
        self.agent.call("start", self.name)

    def wait(self) -> int:
        """The exit code as containerd would see it."""
        return int(self.agent.call("wait", self.name))

    def run(self) -> tuple[int, bytes, bytes]:
        """Start it and give exit code, standard output and standard error."""
        self.start()
        out, err = self.stdout.collect(), self.stderr.collect()
        return self.wait(), out, err


class Agent:
    """The double of the agent, and everything made through it."""

    def __init__(self, cache_dir: str, engine: str = "wasmtime", **options: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [sys.executable, "-m", "tests.integration.agent_wasm.harness", str(theirs.fileno()), engine]
        argv.append(json.dumps({"cache_dir": cache_dir, **options}))
        self.process = subprocess.Popen(argv, pass_fds=[theirs.fileno()])
        theirs.close()
        ours.settimeout(60)
        self._channel = ours
        self._pipes: list[Pipe] = []
        self._count = 0
        self.consoles: list[int] = []

    def call(self, verb: str, *arguments: Any, fds: tuple[int, ...] = ()) -> Any:
        """One request; errors come out as the driver raised them."""
        socket.send_fds(self._channel, [msgpack.packb([verb, arguments])], fds)
        data, given, _, _ = socket.recv_fds(self._channel, 1 << 20, 1)
        self.consoles += given
        reply = msgpack.unpackb(data)
        if "error" in reply:
            raise from_wire(reply["error"])
        return reply["value"]

    def create(
        self, rootfs: str, spec: dict[str, Any], *, timeout: float = TIMEOUT, terminal: bool = False
    ) -> Container:
        """Create a container with three pipes (none with ``terminal``)."""
        self._count += 1
        name = f"c{self._count}"
        pipes = [Pipe(), Pipe(), Pipe()]
        self._pipes += pipes
        stdin, stdout, stderr = pipes
        fds = () if terminal else (stdin.read, stdout.write, stderr.write)
        try:
            pid = self.call("create", name, rootfs, spec, terminal, timeout, fds=fds)
        finally:
            stdin.close_read()
            stdout.close_write()
            stderr.close_write()
        return Container(self, name, pid, *pipes)

    def close(self) -> None:
        """End the double, which kills what runs."""
        self._channel.close()
        self.process.wait(TIMEOUT)
        self.release()

    def release(self) -> None:
        """Close what the containers made so far were given."""
        for pipe in self._pipes:
            pipe.close()
        for fd in self.consoles:
            os.close(fd)
        self._pipes.clear()
        self.consoles.clear()


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The module cache that the tests of a session share."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def double(cache_dir: str) -> Iterator[Agent]:
    """An agent's double for all tests of a module."""
    agent = Agent(cache_dir)
    yield agent
    agent.close()


@pytest.fixture
def agent(double: Agent) -> Iterator[Agent]:
    """The double, checked for what a test leaves behind in it."""
    before = double.call("state")
    yield double
    for n in range(1, double._count + 1):
        double.call("delete", f"c{n}")
    assert double.call("state") == before
    double.release()
    double._count = 0


@pytest.fixture
def rootfs(tmp_path: Any) -> str:
    """An image's root with all test programs: /<name>.wasm."""
    path = str(tmp_path / "rootfs")
    os.makedirs(f"{path}/etc")
    for name in NAMES:
        write(f"{path}/{name}.wasm", module(name))
    write(f"{path}/etc/greeting", b"from the image\n")
    os.chmod(tmp_path, 0o755)
    return path


def write(path: str, data: bytes) -> None:
    """A file with ``data``."""
    with open(path, "wb") as file:
        file.write(data)


def spec(*args: str, **changes: Any) -> dict[str, Any]:
    """A specification that runs ``args``; ``changes`` is for ``process``, ``root``, ``linux`` and ``mounts``."""
    process = {"args": list(args), "cwd": "/", "env": ["PATH=/"], "user": {"uid": 0, "gid": 0}}
    return {
        "process": process | changes.get("process", {}),
        "root": {"path": "rootfs"} | changes.get("root", {}),
        "linux": changes.get("linux", {}),
        "mounts": changes.get("mounts", []),
    }
