"""A Cloud Hypervisor as the worker starts it, with the program that a test wants."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from kuasar.agent.client import AgentClient
from kuasar.backends.base import User
from kuasar.backends.boot_setup import Setup
from kuasar.backends.cloud_hypervisor.facts import find_setup
from kuasar.backends.cloud_hypervisor.machine import Machine, Placement
from kuasar.backends.cloud_hypervisor.template import guest_of
from kuasar.backends.making import MakerHost
from kuasar.backends.processes import HeldProcess
from kuasar.core.aio import Loop
from kuasar.core.config import Engine
from tests.needs import GUEST_IMAGE
from tests.standins.install import install

USER = User(61999, 61999)
"""As whom the VMM runs."""
SECONDS = 60.0


class Rig:
    """A machine in a directory of its own. ``binary``: the program; empty: the stand-in."""

    def __init__(self, directory: Path, hardware: str = "", binary: str = "", user: User = USER) -> None:
        self.loop = Loop()
        self.directory = directory
        self.user = user
        self.host = MakerHost(self.loop, str(directory))
        self.process = HeldProcess(self.host, "vmm")
        self.machine = Machine(self.host, self.process, user)
        self._hardware = hardware
        self._binary = binary
        self.settings = Engine(kind="clh", image=str(GUEST_IMAGE), memory_mib=128, max_memory_mib=1024, max_vcpus=2)
        self.placement = Placement(str(directory / "console"), user=user)

    def stand_in(self, faults: dict[str, str] | None = None, **more: str) -> str:
        """Path of the stand-in with these faults and ``more`` settings."""
        settings = {"STANDIN_FAULTS": json.dumps(faults or {}), **more}
        if self._hardware:
            settings["STANDIN_HARDWARE"] = self._hardware
        return install("cloud_hypervisor", self.directory / "program", settings=settings)

    def setup(self, faults: dict[str, str] | None = None) -> Setup:
        """What is booted."""
        settings = replace(self.settings, binary=self._binary or self.stand_in(faults))
        return self.loop.run(find_setup(self.host, settings, time.monotonic() + SECONDS))

    def boot(self, faults: dict[str, str] | None = None, template: int | None = None) -> Setup:
        """Start it; gives what was booted."""
        setup = self.setup(faults)
        guest = guest_of(setup, self.settings)
        self.loop.run(self.machine.boot(setup, guest, self.placement, time.monotonic() + SECONDS, template))
        return setup

    def put(self, endpoint: str, body: dict[str, Any] | None = None) -> Any:
        """One request of the API."""
        return self.loop.run(self.machine.api.put(endpoint, body))

    def connect(self) -> AgentClient:
        """A channel to the agent."""
        return self.loop.run(self.machine.open_channel(time.monotonic() + SECONDS))

    def call(self, client: AgentClient, op: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask the agent."""
        return self.loop.run(client.call(op, body or {}, os.urandom(8).hex(), time.monotonic() + SECONDS))

    def end(self) -> None:
        """Kill it and free everything of it."""
        self.loop.run(self.process.kill(time.monotonic() + 30.0))
        self.process.release()
        self.machine.disconnect()

    def close(self) -> None:
        """As :meth:`end`, for good."""
        self.end()
        self.host.close()
        self.loop.close()


@contextmanager
def directory_for_all() -> Iterator[Path]:
    """A short one (socket addresses are short), through which every user may go."""
    path = Path(tempfile.mkdtemp(prefix="kclh-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def first_process_of_guest() -> int:
    """The first process of the only guest whose hardware is below us, as the host numbers it."""
    for pid in _below(os.getpid()):
        words = Path(f"/proc/{pid}/status").read_text().partition("NSpid:")[2].partition("\n")[0].split()
        if len(words) == 2 and words[1] == "1" and "python3.11 -I -S" in _command(pid):
            return pid
    raise AssertionError("no guest runs")


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def _below(pid: int) -> Iterator[int]:
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        yield child
        yield from _below(child)
