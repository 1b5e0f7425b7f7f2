"""What is looked up on the node."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from kuasar.core import reconciled
from kuasar.core.config import Config
from kuasar.core.reconciled import Look
from kuasar.core.records import seal
from kuasar.gateway.metrics import catalogue as c
from kuasar.gateway.metrics.node import look


def record(config: Config, sandbox: str, state: str, containers: int, pid: int = 0) -> None:
    directory = Path(config.sandboxes_dir, sandbox)
    directory.mkdir(parents=True)
    wire = {"state": state, "engine": "runc", "containers": {f"c{number}": {} for number in range(containers)}}
    (directory / "sandbox.msgpack").write_bytes(seal(wire))


def test_records_and_what_has_none_yet(tmp_path: Path) -> None:
    config = replace(Config(), state_dir=str(tmp_path))
    record(config, "s1", "ready", 2)
    record(config, "s2", "stopped", 1)
    Path(config.sandboxes_dir, "s3").mkdir()
    Path(config.sandboxes_dir, "s3", "sandbox.msgpack").write_bytes(b"rubbish")
    values = look(config, {"s1": "runc", "s4": "qemu"})
    assert values[c.SANDBOXES] == {
        ("runc", "ready"): 1,
        ("runc", "stopped"): 1,
        ("unknown", "damaged"): 1,
        ("qemu", "creating"): 1,
    }
    assert values[c.CONTAINERS] == {("runc",): 3, ("unknown",): 0}
    assert c.LEAKED not in values  # nobody has looked yet


def test_the_reconciler_s_last_look(tmp_path: Path) -> None:
    config = replace(Config(), state_dir=str(tmp_path))
    look_ = Look(at=time.time(), recorded={"cgroup": 3}, alive={"cgroup": 2}, leaked={"mount": 1})
    reconciled.write(config.state_dir, look_, [("kill", "done"), ("kill", "failed")])
    reconciled.write(config.state_dir, look_, [("kill", "done")])
    values = look(config, {})
    assert values[c.RECORDED] == {("cgroup",): 3}
    assert values[c.ALIVE] == {("cgroup",): 2}
    assert values[c.LEAKED] == {("mount",): 1}
    assert values[c.STEPS] == {("kill", "done"): 2, ("kill", "failed"): 1}
    assert values[c.LOOKED_AT] == {(): look_.at}


def test_our_own_process_is_always_there(tmp_path: Path) -> None:
    values = look(replace(Config(), state_dir=str(tmp_path)), {})
    assert values[c.PROCESSES]["gateway",] == 1
    descriptors = values[c.DESCRIPTORS]["gateway",]
    assert isinstance(descriptors, float | int)
    assert abs(descriptors - len(os.listdir("/proc/self/fd"))) <= 1
