"""A Cloud Hypervisor as the worker starts it: the stand-in as VMM, the real agent as its guest."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from kuasar.backends.cloud_hypervisor import bodies
from kuasar.backends.cloud_hypervisor.machine import API_SOCKET, VSOCK_SOCKET, Machine
from kuasar.backends.making import MakerHost
from kuasar.backends.processes import HeldProcess
from kuasar.core.aio import Loop
from kuasar.core.errors import BackendFailed, DeadlineExceeded, KuasarError, Unavailable
from tests.integration.agent.harness import running_agent
from tests.integration.cloud_hypervisor.standin import PROGRAM
from tests.needs import ROOT

pytestmark = ROOT
RUNC = pytest.mark.skipif(
    shutil.which("runc") is None, reason="runc is not installed: the agent makes containers by it"
)


class Rig:
    """A machine in a directory of its own."""

    def __init__(self, loop: Loop, directory: Path) -> None:
        self.loop = loop
        self.directory = directory
        self.host = MakerHost(loop, str(directory))
        self.process = HeldProcess(self.host, "vmm")
        self.machine = Machine(self.host, self.process)

    def boot(self, binary: str, seconds: float = 60.0) -> None:
        guest = bodies.Guest(
            kernel="/image/vmlinux",
            initramfs="/image/initrd",
            root_disk="/image/root.img",
            command_line="console=ttyS0",
            console=str(self.directory / "console"),
            vsock=self.machine.vsock_path,
            memory_bytes=128 << 20,
            max_memory_bytes=1024 << 20,
            max_vcpus=2,
            shared_memory=True,
        )
        log_path = str(self.directory / "log")
        self.loop.run(self.machine.boot(binary, guest, log_path, time.monotonic() + seconds))

    def stand_in(self, **settings: str) -> str:
        """Path of the stand-in; a program of ours starts with no environment, so its settings are in a script."""
        path = self.directory / "cloud-hypervisor"
        words = {"STANDIN_JOURNAL": str(self.directory / "journal"), **settings}
        lines = [f"export {name}={shlex.quote(value)}" for name, value in words.items()]
        path.write_text("\n".join(["#!/bin/sh", *lines, f'exec {sys.executable} {PROGRAM} "$@"', ""]))
        path.chmod(0o755)
        return str(path)

    def end(self) -> None:
        self.loop.run(self.process.kill(time.monotonic() + 30.0))
        self.process.release()
        self.machine.disconnect()


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short one: socket addresses are short."""
    path = Path(tempfile.mkdtemp(prefix="kclh-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def rig(directory: Path) -> Iterator[Rig]:
    loop = Loop()
    made = Rig(loop, directory)
    yield made
    made.end()
    made.host.close()
    loop.close()


@RUNC
def test_the_agent_of_a_machine_answers(rig: Rig) -> None:
    (rig.directory / "agent").mkdir()
    with running_agent(rig.directory / "agent", f"t{uuid.uuid4().hex[:8]}") as agent:
        rig.boot(rig.stand_in(STANDIN_AGENT=agent.socket_path))
        for _ in range(2):  # a successor connects anew
            client = rig.loop.run(rig.machine.open_channel(time.monotonic() + 60.0))
            answer = client.call("setup", {"hostname": "pod", "sysctls": {}, "shm_bytes": 0}, deadline=None)
            assert isinstance(rig.loop.run(answer), dict)
            client.close()
        rig.loop.run(rig.machine.reconnect(time.monotonic() + 60.0))
        rig.loop.run(rig.machine.quit())
        assert rig.loop.run(rig.process.ended_by(time.monotonic() + 60.0))


def test_a_guest_that_never_listens_costs_the_deadline(rig: Rig) -> None:
    rig.boot(rig.stand_in())
    with pytest.raises((Unavailable, DeadlineExceeded), match="vsock port 1024"):
        rig.loop.run(rig.machine.open_channel(time.monotonic() + 0.3))


@pytest.mark.parametrize("endpoint", ["vm.create", "vm.boot"])
@pytest.mark.parametrize(
    "fault, error, words", [("fail", BackendFailed, "told to fail: by the test"), ("die", Unavailable, "connection")]
)
def test_a_start_that_fails_leaves_nothing(
    rig: Rig,
    endpoint: str,
    fault: str,
    error: type[KuasarError],
    words: str,
) -> None:
    binary = rig.stand_in(STANDIN_FAULTS=json.dumps({endpoint: fault}))
    with pytest.raises(error, match=words):
        rig.boot(binary)
    rig.end()
    assert not {API_SOCKET, VSOCK_SOCKET} & set(os.listdir(rig.directory))


def test_a_program_that_is_not_there(rig: Rig) -> None:
    with pytest.raises((BackendFailed, Unavailable)):
        rig.boot("/nonexistent/cloud-hypervisor", seconds=30.0)


def test_asking_what_is_gone_to_quit_is_harmless(rig: Rig) -> None:
    rig.loop.run(rig.machine.quit())
