"""A node of which there are only directories, and ``kuasarctl`` on it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kuasar.cli.ctl.main import main
from kuasar.core.tombstones import Tombstone, bury
from kuasar.workers.pod import PodSpec
from kuasar.workers.record import Record, SandboxDirectory


class Files:
    """The directories."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "s"
        self.config = root / "kuasar.toml"
        self.config.write_text(
            f'state_dir = "{self.state}"\nlog_dir = "{root}/l"\ncache_dir = "{root}/c"\n'
            f'[gateway]\nsocket = "{root}/gw.sock"\n[supervisor]\nsocket = "{root}/sup.sock"\n'
            f'[containerd]\nevents = "{root}/containerd.sock.ttrpc"\n'
            '[engines.runc]\n[engines.qemu]\n[sandboxers.kuasar-runc]\nengine = "runc"\n'
        )
        (self.state / "sandboxes").mkdir(parents=True)
        (root / "l" / "sandboxes").mkdir(parents=True)

    def sandbox(self, sandbox: str, name: str, **values: Any) -> None:
        """A record."""
        directory = SandboxDirectory(str(self.state / "sandboxes"), sandbox)
        directory.next_generation()
        pod = PodSpec.from_wire({"name": name, "namespace": "default", "uid": "u", "host_network": True})
        common = {"namespace": "k8s.io", "sandboxer": "kuasar-runc", "engine": "runc", "netns": "", "bundle": ""}
        known: dict[str, Any] = {"state": "ready", "created_at": time.time_ns(), "started_at": time.time_ns()}
        directory.record = Record(id=sandbox, pod=pod, **{**common, **known, **values})
        directory.save()

    def tombstone(self, sandbox: str, name: str, **values: Any) -> None:
        """How one has ended."""
        known: dict[str, Any] = {"phase": "running", "reason": "the agent died", "exit_status": 137, "started_at": 5}
        known |= {"ended_at": time.time_ns(), "created_at": 5, **values}
        bury(str(self.state), Tombstone(sandbox=sandbox, namespace="k8s.io", engine="runc", pod=name, **known))

    def ctl(self, *arguments: str) -> Result:
        """Run it."""
        return CliRunner().invoke(main, ["--config", str(self.config), *arguments], prog_name="kuasarctl")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """One."""
    return Files(tmp_path)
