"""A Firecracker as the worker starts it: the stand-in as VMM, in a directory of its own."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kuasar.backends.base import ROOT, Nic, User
from kuasar.backends.firecracker import bodies
from kuasar.backends.firecracker.facts import Setup
from kuasar.backends.firecracker.machine import Machine, Placement
from kuasar.backends.making import MakerHost
from kuasar.backends.processes import HeldProcess
from kuasar.core.aio import Loop

PROGRAM = Path(__file__).parents[2] / "standins" / "firecracker.py"
SOMEBODY = User(61200, 61200)
"""As whom a VMM may run."""


def guest(**changes: Any) -> bodies.Guest:
    """A small machine."""
    made = {"command_line": "console=ttyS0", "vcpus": 1, "memory_bytes": 128 << 20}
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
        for name in ("vmlinux", "initrd", "root.erofs"):
            (directory / name).write_bytes(b"x" * 4096)
            (directory / name).chmod(0o644)
        (directory / "journal").touch()
        (directory / "journal").chmod(0o666)

    @property
    def jail(self) -> Path:
        return Path(self.machine.jail.directory)

    def stand_in(self, **settings: str) -> str:
        """Path of the stand-in; a program of ours starts with no environment, so its settings are in a script."""
        path = self.directory / "firecracker"
        words = {"STANDIN_JOURNAL": str(self.directory / "journal"), **settings}
        lines = [f"export {name}={shlex.quote(value)}" for name, value in words.items()]
        path.write_text("\n".join(["#!/bin/sh", *lines, f'exec {sys.executable} {PROGRAM} "$@"', ""]))
        path.chmod(0o755)
        return str(path)

    def boot(self, binary: str, seconds: float = 60.0, netns: str = "", nics: Sequence[Nic] = ()) -> None:
        setup = Setup(
            binary=binary,
            version="1.12.0",
            kernel=str(self.directory / "vmlinux"),
            initrd=str(self.directory / "initrd"),
            root=str(self.directory / "root.erofs"),
            image_digest="",
            command_line="console=ttyS0",
        )
        placement = Placement(str(self.directory / "log"), str(self.directory / "console"), "", netns, self.user)
        machine = guest(nics=tuple(nics))
        self.loop.run(self.machine.boot(setup, machine, placement, time.monotonic() + seconds))

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
