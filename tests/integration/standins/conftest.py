"""A guest of the stand-ins as a VMM would have it, and its agent."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kuasar.agent.client import AgentClient
from kuasar.backends.guest_image import ROOT_DISK, load
from kuasar.core.aio import Loop
from tests.deadline import eventually
from tests.needs import GUEST_IMAGE
from tests.standins.guest.client import Guest
from tests.standins.guest.server import running_hardware

SECONDS = 60.0
PORT = 1024


class Rig:
    """A guest and what its VMM holds."""

    def __init__(self, hardware: str, directory: Path) -> None:
        self.loop = Loop()
        self.guest = Guest(hardware)
        self.console = directory / "console"
        self._client: AgentClient | None = None

    def boot(self, root: Path = GUEST_IMAGE / ROOT_DISK, **options: int) -> None:
        """Start it from the guest image."""
        disk = os.open(root, os.O_RDONLY)
        console = os.open(self.console, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self.guest.boot(f"console=ttyS0 {load(str(GUEST_IMAGE)).command_line}", disk, console, **options)
        finally:
            os.close(disk)
            os.close(console)

    def connect(self) -> socket.socket:
        """The agent's port; waits for it."""
        found = eventually(lambda: self.guest.connect(PORT), "the guest listens", timeout=SECONDS)
        assert found is not None
        return found

    def call(self, op: str, body: dict[str, Any] | None = None, seconds: float = SECONDS) -> dict[str, Any]:
        """Ask the agent."""
        deadline = time.monotonic() + seconds
        if self._client is None:
            self._client = AgentClient(self.loop, self.connect())
            self.loop.run(self._client.hello(deadline))
        answer = self._client.call(op, body or {}, os.urandom(8).hex(), deadline)
        return self.loop.run(answer)

    def run(self, code: str, *mounts: dict[str, Any], rootfs: list[dict[str, Any]] | None = None) -> int:
        """The exit code of Python ``code`` in a container that has the guest's root, and ``mounts``."""
        spec = {
            "ociVersion": "1.0.2",
            "process": {
                "args": ["/usr/bin/python3.11", "-I", "-S", "-B", "-c", f"import os, sys\n{code}"],
                "cwd": "/",
                "env": [],
                "user": {"uid": 0, "gid": 0},
            },
            "root": {"path": "rootfs"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}, *mounts],
            "linux": {"namespaces": [{"type": "mount"}], "resources": {"memory": {"limit": 64 << 20}}},
        }
        rootfs = rootfs or [{"type": "bind", "source": "/", "options": ["rbind", "ro"]}]
        name = {"id": "c"}
        self.call("task.create", {**name, "bundle": "", "rootfs": rootfs, "spec": spec, "terminal": False})
        self.call("task.start", name)
        status = int(self.call("task.wait", name)["exit_status"])
        self.call("task.delete", name)
        return status

    def close(self) -> None:
        """Let go of everything."""
        if self._client is not None:
            self._client.close()
        self.guest.close()
        self.loop.close()
        if self.console.exists():
            print("console of the guest:", self.console.read_text(), sep="\n")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with running_hardware() as hardware:
        made = Rig(hardware, tmp_path)
        yield made
        made.close()
