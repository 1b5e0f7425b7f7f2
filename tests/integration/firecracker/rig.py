"""A Firecracker as the worker starts it: the stand-in as VMM, in a directory of its own."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from kuasar.backends.base import ROOT, User
from kuasar.backends.boot_setup import Setup
from kuasar.backends.firecracker import bodies
from kuasar.backends.firecracker.machine import Machine, Placement
from kuasar.backends.jail import Disk
from kuasar.backends.making import MakerHost
from kuasar.backends.processes import HeldProcess
from kuasar.core.aio import Loop
from tests.standins.install import install

SOMEBODY = User(61200, 61200)
"""As whom a VMM may run."""
REFUSALS = [
    (bodies.swap("rw7", "empty"), "Unable to patch the block device: .*verify the request"),
    (bodies.swap("rw0", "none"), r"Error manipulating the backing file: No such file .* none"),
    (bodies.Request("PUT", "vsock", {"guest_cid": 3, "uds_path": "v"}), "not supported after starting"),
    (bodies.snapshot(), "Create snapshot error: "),
    (bodies.restore([]), "not supported after starting"),
    (bodies.Request("PATCH", "vm", {"colour": "red"}), "unknown field `colour`"),
    (bodies.Request("PUT", "drives/a-b", {"drive_id": "a-b", "is_root_device": False}), "alphanumeric"),
    (bodies.Request("PUT", "nothing", {}), "Invalid request method and/or path"),
]
"""What a running machine is not asked for, and how Firecracker says no: the stand-in's words are the true program's."""


def guest(**changes: Any) -> bodies.Guest:
    """A small machine."""
    made = {"command_line": "console=ttyS0 kuasar.end=reboot", "vcpus": 1, "memory_bytes": 128 << 20}
    return bodies.Guest(**{**made, "read_only_drives": 2, "writable_drives": 1, **changes})


class Rig:
    """A machine in ``directory``, which the VMM's user may look into."""

    def __init__(self, directory: Path, user: User = ROOT) -> None:
        directory.chmod(0o755)
        self.loop = Loop()
        self.directory = directory
        self.user = user
        self.host = MakerHost(self.loop, str(directory))
        self.process = HeldProcess(self.host, "vmm")
        self.machine = Machine(self.host, self.process, user)
        self.image = str(directory)
        """Where kernel, initial memory disk and root disk are."""
        for name in ("vmlinux", "initrd", "root.erofs"):
            (directory / name).write_bytes(b"x" * 4096)
            (directory / name).chmod(0o644)
        (directory / "journal").touch()
        (directory / "journal").chmod(0o666)

    @property
    def jail(self) -> Path:
        return Path(self.machine.jail.directory)

    def stand_in(self, **settings: str) -> str:
        """Path of the stand-in, with these settings."""
        words = {"STANDIN_JOURNAL": str(self.directory / "journal"), **settings}
        return install("firecracker", self.directory / "program", settings=words)

    def setup(self, binary: str) -> Setup:
        return Setup(
            binary=binary,
            version="1.12.0",
            kernel=f"{self.image}/vmlinux",
            initrd=f"{self.image}/initrd",
            root=f"{self.image}/root.erofs",
            image_digest="",
            command_line="console=ttyS0",
        )

    def placement(self, netns: str = "") -> Placement:
        return Placement(str(self.directory / "log"), str(self.directory / "console"), "", netns, self.user)

    def boot(
        self,
        binary: str,
        seconds: float = 60.0,
        netns: str = "",
        machine: bodies.Guest | None = None,
        files: tuple[int, ...] = (),
    ) -> None:
        deadline = time.monotonic() + seconds
        setup, placement = self.setup(binary), self.placement(netns)
        self.loop.run(self.machine.boot(setup, machine or guest(), placement, deadline, files))

    def restore(self, binary: str, files: tuple[int, int], taps: tuple[str, ...], netns: str = "") -> None:
        deadline = time.monotonic() + 60.0
        self.loop.run(self.machine.restore(self.setup(binary), files, taps, self.placement(netns), deadline))

    def fill(self, drive: str, path: Path, *, read_only: bool) -> Disk:
        """Put a file into a drive."""
        disk, keeper = self.machine.jail.add_disk("k1", str(path), read_only=read_only)
        try:
            self.do(bodies.swap(drive, disk.path))
        finally:
            os.close(keeper)
        return disk

    @property
    def state(self) -> str:
        return str(self.loop.run(self.machine.api.get(""))["state"])

    def do(self, request: bodies.Request) -> None:
        self.loop.run(self.machine.api.do(request, time.monotonic() + 60.0))

    @property
    def journal(self) -> list[dict[str, Any]]:
        """All requests so far but those that ask for the state."""
        lines = (self.directory / "journal").read_text(encoding="utf-8").splitlines()
        return [each for each in map(json.loads, lines) if each["call"] != "GET /"]

    def end(self) -> None:
        """End the VMM and free its directory."""
        self.loop.run(self.process.kill(time.monotonic() + 30.0))
        self.process.release()
        self.machine.disconnect()

    def close(self) -> None:
        self.end()
        self.host.close()
        self.loop.close()


def faults(**by_request: str) -> dict[str, str]:
    """The setting of the stand-in: ``put_vsock="fail"``."""
    named = {}
    for name, fault in by_request.items():
        method, _, path = name.partition("_")
        named[name if name == "start" else f"{method.upper()} /{path.replace('__', '/').replace('_', '-')}"] = fault
    return {"STANDIN_FAULTS": json.dumps(named)}


def files_in(directory: Path) -> set[str]:
    """What is there."""
    return set(os.listdir(directory))
