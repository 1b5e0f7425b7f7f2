"""The driver below the real agent: PID 1 of namespaces of its own, driven over its protocol."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kuasar.core import cgroup
from kuasar.core.errors import InvalidArgument, Unimplemented
from tests.integration.agent.harness import SECONDS, Agent
from tests.wasm import NAMES, module

pytestmark = pytest.mark.root
MIB = 1024 * 1024


class WasmAgent(Agent):
    """An agent with the Wasmtime driver."""

    def _launch(self, flags: int, netns: str, driver: str, options: dict[str, str]) -> int:
        args = {
            "sandbox_id": self.name,
            "directory": str(self.directory),
            "netns": netns,
            "pid_namespace": True,
            "driver": driver,
            "options": {"cache_dir": str(self.base / "cache")},
            "log_level": "debug",
        }
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs, listener, self.log.open("wb") as log:
            listener.bind(str(self.base / "agent.sock"))
            listener.listen(8)
            command = [sys.executable, "-m", "kuasar.agent.launch", "--args", json.dumps(args), "--flags", str(flags)]
            command += ["--listen-fd", str(listener.fileno()), "--control-fd", str(theirs.fileno())]
            fds = (listener.fileno(), theirs.fileno())
            subprocess.run(command, check=True, stdout=log, stderr=log, pass_fds=fds, timeout=SECONDS)
            ours.settimeout(SECONDS)
            pid = int(struct.unpack("i", ours.recv(64))[0])
            ours.send(b"g")
        return pid

    def image(self) -> list[dict[str, Any]]:
        """A root file system with the test programs, as a mount for ``task.create``."""
        image = self.base / "wasm"
        if not image.exists():
            (image / "etc").mkdir(parents=True)
            (image / "etc" / "greeting").write_text("from the image\n")
            for name in NAMES:
                (image / f"{name}.wasm").write_bytes(module(name))
        return [{"type": "bind", "source": str(image), "target": "", "options": ["rbind", "rw"]}]

    async def output(self, name: str, args: list[str], **options: Any) -> tuple[int, bytes]:
        """Run a container to its end: its exit code and standard output."""
        path = self.fifo(f"{name}.out")
        reader = self.reader(path)
        await self.run_container(name, args, rootfs=self.image(), stdout=path, **options)
        data = await self.read(reader)
        return (await self.finish(name))["exit_status"], data


@pytest.fixture
def agent() -> Iterator[WasmAgent]:
    """An agent in namespaces of its own, with its directory; the output of a failed test has its log."""
    base = Path(tempfile.mkdtemp(prefix="kwagt-"))  # short, because socket addresses are
    agent = WasmAgent(base, f"w{uuid.uuid4().hex[:8]}", driver="wasmtime")
    try:
        yield agent
        print(agent.log.read_text())
    finally:
        agent.close()
        shutil.rmtree(base)
        for directory in cgroup.current().directories("/kuasar-test"):
            if os.path.isdir(directory) and not any(entry.is_dir() for entry in os.scandir(directory)):
                os.rmdir(directory)


def test_run_to_the_end(agent: WasmAgent) -> None:
    assert agent.run(agent.output("hello", ["/hello.wasm", "one"])) == (
        0,
        b"Hello from a WebAssembly container.\none\n",
    )
    assert agent.run(agent.output("exit", ["/exit.wasm", "200"])) == (200, b"")
    assert agent.run(agent.output("read", ["/read.wasm", "3", "etc/greeting"])) == (0, b"from the image\n")


def test_all_output_comes_before_the_end(agent: WasmAgent) -> None:
    code, data = agent.run(agent.output("flood", ["/flood.wasm"]))
    assert code == 0
    assert data == struct.pack("<2621440I", *range(2621440))


def test_kill_state_and_pids(agent: WasmAgent) -> None:
    async def scenario() -> None:
        path = agent.fifo("out")
        reader = agent.reader(path)
        created = await agent.run_container("spin", ["/spin.wasm"], rootfs=agent.image(), stdout=path)
        assert await agent.read(reader, until=b"spinning\n") == b"spinning\n"
        state = await agent.call("task.state", id="spin")
        assert (state["status"], state["pid"]) == ("running", created["pid"])
        assert (await agent.call("task.pids", id="spin"))["pids"] == [[created["pid"], ""]]
        with open(f"/proc/{created['pid']}/comm") as file:
            assert file.read() == "spin.wasm\n"
        await agent.call("task.kill", id="spin", exec_id="", signal=signal.SIGTERM, all=False)
        assert (await agent.finish("spin"))["exit_status"] == 128 + signal.SIGTERM

    agent.run(scenario())


def test_pause_update_and_statistics(agent: WasmAgent) -> None:
    async def scenario() -> None:
        path = agent.fifo("out")
        reader = agent.reader(path)
        linux = {"resources": {"memory": {"limit": 64 * MIB}}}
        await agent.run_container("spin", ["/spin.wasm"], rootfs=agent.image(), stdout=path, linux=linux)
        await agent.read(reader, until=b"spinning\n")
        await agent.call("task.pause", id="spin")
        assert (await agent.call("task.state", id="spin"))["status"] == "paused"
        await agent.call("task.resume", id="spin")
        await agent.call("task.update", id="spin", resources={"memory": {"limit": 48 * MIB}})
        stats = (await agent.call("task.stats", id="spin"))["stats"]
        assert str(48 * MIB) in json.dumps(stats)
        await agent.call("task.kill", id="spin", exec_id="", signal=signal.SIGKILL, all=True)
        assert (await agent.finish("spin"))["exit_status"] == 128 + signal.SIGKILL

    agent.run(scenario())


def test_what_fails_at_create_leaves_the_name_free(agent: WasmAgent) -> None:
    with pytest.raises(InvalidArgument, match=r"no file /missing\.wasm in the image"):
        agent.run(agent.create("c", ["/missing.wasm"], rootfs=agent.image()))
    assert agent.run(agent.output("c", ["/args.wasm"])) == (0, b"/args.wasm\0")


def test_there_is_no_exec(agent: WasmAgent) -> None:
    async def scenario() -> None:
        await agent.run_container("spin", ["/spin.wasm"], rootfs=agent.image())
        with pytest.raises(Unimplemented):
            await agent.start_exec("spin", "e", ["ls"])
        await agent.call("task.kill", id="spin", exec_id="", signal=signal.SIGKILL, all=False)
        await agent.finish("spin")

    agent.run(scenario())
