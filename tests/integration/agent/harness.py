"""A real agent in namespaces of its own, started through its launch module, and a client to drive it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kuasar.agent.client import AgentClient
from kuasar.core import cgroup
from kuasar.core.aio import Loop

CGROUPS = f"kuasar-agent-test-{os.getpid()}"
"""Parent of all cgroups of a test session: several sessions may run on a machine."""
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID = 0x00020000, 0x04000000, 0x08000000, 0x20000000
POD = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID
SECONDS = 20.0
APPLETS = ("sh", "cat", "echo", "sleep", "true", "false", "dd", "id", "hostname", "stty", "tty", "ls", "ps", "md5sum")
CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SYS_CHROOT"]


class Agent:
    """One agent with its sandbox directory below ``base``."""

    def __init__(
        self,
        base: Path,
        name: str,
        flags: int = POD,
        netns: str = "",
        driver: str = "oci",
        options: dict[str, str] | None = None,
    ) -> None:
        self.base = base
        self.name = name
        self.directory = base / "sandbox"
        self.directory.mkdir()
        self.cgroup = f"/{CGROUPS}/{name}"
        self.loop = Loop()
        self.client: AgentClient | None = None
        self.log = base / "agent.log"
        self._streams: list[int] = []
        cgroup.create(self.cgroup)
        self.pid = self._launch(flags, netns, driver, options or {"binary": "runc"})
        self.pidfd = os.pidfd_open(self.pid)
        self.socket_path = str(base / "agent.sock")

    def _launch(self, flags: int, netns: str, driver: str, options: dict[str, str]) -> int:
        args = {
            "sandbox_id": self.name,
            "directory": str(self.directory),
            "netns": netns,
            "cgroup": self.cgroup,
            "pid_namespace": bool(flags & CLONE_NEWPID),
            "host_namespaces": ([] if netns else ["net"]) + ([] if flags & CLONE_NEWIPC else ["ipc"]),
            "driver": driver,
            "options": options,
            "log_level": "debug",
        }
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs, listener, self.log.open("wb") as log:
            listener.bind(str(self.base / "agent.sock"))
            listener.listen(8)
            command = [sys.executable, "-m", "kuasar.agent.launch", "--args", json.dumps(args), "--flags", str(flags)]
            command += ["--listen-fd", str(listener.fileno()), "--control-fd", str(theirs.fileno())]
            subprocess.run(
                command,
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(listener.fileno(), theirs.fileno()),
                timeout=SECONDS,
            )
            ours.settimeout(SECONDS)
            pid = int(struct.unpack("i", ours.recv(64))[0])
            ours.send(b"g")
        return pid

    # -- talking ---------------------------------------------------------------------------------------------------

    def run(self, coro: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run(self.loop.wait_for(coro, time.monotonic() + SECONDS))

    async def connect(self) -> AgentClient:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(self.socket_path)
        client = AgentClient(self.loop, sock)
        await client.hello(time.monotonic() + SECONDS)
        self.client = client
        return client

    async def call(self, op: str, key: str = "", **body: Any) -> dict[str, Any]:
        client = self.client
        if client is None or client.closed:
            client = await self.connect()
        return await client.call(op, body, key, time.monotonic() + SECONDS)

    def fifo(self, name: str) -> str:
        path = self.base / name
        os.mkfifo(path)
        return str(path)

    def reader(self, path: str) -> int:
        """A non-blocking reading end, closed with the agent."""
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._streams.append(fd)
        return fd

    async def read(self, fd: int, until: bytes | None = None) -> bytes:
        """Everything up to the end of file, or until ``until`` is in it."""
        data = b""
        while until is None or until not in data:
            await self.loop.wait_readable(fd)
            try:
                chunk = os.read(fd, 1 << 20)
            except BlockingIOError:
                continue
            if not chunk:
                break
            data += chunk
        return data

    # -- containers ------------------------------------------------------------------------------------------------

    def rootfs(self) -> list[dict[str, Any]]:
        lower = self.base / "image"
        if not lower.exists():
            make_image(lower)
        layer = self.base / f"layer-{time.monotonic_ns()}"
        (layer / "upper").mkdir(parents=True)
        (layer / "work").mkdir()
        options = [f"lowerdir={lower}", f"upperdir={layer / 'upper'}", f"workdir={layer / 'work'}", "index=off"]
        return [{"type": "overlay", "source": "overlay", "target": "", "options": options}]

    def spec(self, name: str, args: list[str], **changes: Any) -> dict[str, Any]:
        namespaces = [{"type": "mount"}, {"type": "pid"}]
        namespaces += [{"type": kind, "path": f"/proc/{self.pid}/ns/{kind}"} for kind in ("ipc", "uts", "net")]
        for namespace in namespaces:
            if namespace["type"] == "net":
                namespace["type"] = "network"
        spec: dict[str, Any] = {
            "ociVersion": "1.0.2",
            "process": {
                "args": args,
                "cwd": "/",
                "env": ["PATH=/bin"],
                "user": {"uid": 0, "gid": 0},
                "noNewPrivileges": True,
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
            },
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
            ],
            "linux": {"cgroupsPath": f"/{CGROUPS}/{self.name}-{name}", "namespaces": namespaces},
        }
        spec["linux"] |= changes.pop("linux", {})
        spec["process"] |= changes.pop("process", {})
        return spec | changes

    async def create(self, name: str, args: list[str], **options: Any) -> dict[str, Any]:
        stdio = {field: options.pop(field, "") for field in ("stdin", "stdout", "stderr")}
        return await self.call(
            "task.create",
            key=options.pop("key", ""),
            id=name,
            bundle="/bundle",
            rootfs=options.pop("rootfs", None) or self.rootfs(),
            terminal=options.pop("terminal", False),
            spec=self.spec(name, args, **options),
            **stdio,
        )

    async def run_container(self, name: str, args: list[str], **options: Any) -> dict[str, Any]:
        created = await self.create(name, args, **options)
        await self.call("task.start", id=name)
        return created

    async def start_exec(self, name: str, exec_id: str, args: list[str], **options: Any) -> dict[str, Any]:
        stdio = {field: options.pop(field, "") for field in ("stdin", "stdout", "stderr")}
        terminal = options.pop("terminal", False)
        process = {"args": args, "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}, **options}
        await self.call("task.exec", id=name, exec_id=exec_id, process=process, terminal=terminal, **stdio)
        return await self.call("task.start", id=name, exec_id=exec_id)

    async def finish(self, name: str) -> dict[str, Any]:
        """Wait for the end and delete."""
        ended = await self.call("task.wait", id=name)
        deleted = await self.call("task.delete", id=name)
        assert deleted["exit_status"] == ended["exit_status"]
        return deleted

    # -- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Kill the agent and remove the cgroups, as their owner does."""
        if self.client is not None:
            self.client.close()
        for fd in self._streams:
            os.close(fd)
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        self.run(self._gone())
        os.close(self.pidfd)
        self.loop.close()

    async def _gone(self) -> None:
        await self.loop.wait_readable(self.pidfd)
        self.loop.remove_reader(self.pidfd)
        root = cgroup.current().roots()[0]
        for path in Path(root, CGROUPS).glob(f"{self.name}*"):
            await cgroup.destroy(self.loop, f"/{CGROUPS}/{path.name}")


def make_image(where: Path) -> None:
    """A root file system of busybox."""
    (where / "bin").mkdir(parents=True)
    for name in ("proc", "dev", "tmp", "etc", "sys"):
        (where / name).mkdir()
    shutil.copy("/usr/bin/busybox", where / "bin" / "busybox")
    for applet in APPLETS:
        (where / "bin" / applet).symlink_to("busybox")


@contextmanager
def running_agent(base: Path, name: str, **options: Any) -> Iterator[Agent]:
    agent = Agent(base, name, **options)
    try:
        yield agent
    finally:
        agent.close()
