"""``kuasarctl bench`` on the running stack: what it measures, and that nothing of it stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kuasar.cli.ctl.measuring import LABEL
from tests.deadline import eventually
from tests.e2e.engines import BUSYBOX, OURS, SHELL
from tests.e2e.harness import Node
from tests.interrupts import INTERRUPTIBLE

pytestmark = pytest.mark.needs(OURS, SHELL)
SECONDS = 240.0


def argv(node: Node, *words: str) -> list[str]:
    layout = node.stack.layout
    command = [sys.executable, "-m", "kuasar.cli.ctl.main", "--config", layout.config, "bench", *words]
    return [*command, "--engine", engine_of(node), "--containerd", layout.containerd_socket]


def engine_of(node: Node) -> str:
    return node.engine.handler.removeprefix("kuasar-")


def bench(node: Node, *words: str, code: int = 0) -> Any:
    done = subprocess.run(argv(node, *words, "--json"), capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def pods(node: Node) -> list[str]:
    return [pod.id for pod in node.cri.list_pods() if LABEL in pod.labels]


def test_every_step_of_every_pod_is_measured(node: Node) -> None:
    found = bench(node, "-n", "3", "-c", "2", "--image", BUSYBOX)
    assert found["failures"] == []
    steps = {each["step"]: each for each in found["milliseconds"] if not each["phase"]}
    assert list(steps) == ["run pod", "create container", "start container", "stop pod", "remove pod"]
    for each in found["milliseconds"]:
        assert each["count"] == 3
        assert 0 <= each["p50"] <= each["p95"] <= each["max"]
    phases = [each["step"] for each in found["milliseconds"] if each["phase"]]
    assert "launch" in phases
    assert sum(each["p50"] for each in found["milliseconds"] if each["phase"]) < 3 * steps["run pod"]["max"]
    assert pods(node) == []


def test_what_fails_is_told_and_removed(node: Node) -> None:
    found = bench(node, "-n", "2", "--image", "localhost/no/such/image:1", code=1)
    assert len(found["failures"]) == 2
    assert "no/such/image" in found["failures"][0]
    assert pods(node) == []


def test_an_interrupted_one_cleans_up(node: Node) -> None:
    with subprocess.Popen(
        [*INTERRUPTIBLE, *argv(node, "-n", "200", "-c", "3")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        eventually(lambda: pods(node), "it has begun")
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert b"interrupted; the pods are being removed" in error
    assert pods(node) == []


def test_the_next_one_removes_what_a_killed_one_left(node: Node) -> None:
    with subprocess.Popen(
        [*INTERRUPTIBLE, *argv(node, "-n", "200", "-c", "3")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        eventually(lambda: pods(node), "it has begun")
        process.kill()
    assert not Path(f"/proc/{process.pid}").exists()
    bench(node, "-n", "1")
    assert pods(node) == []


def test_what_cannot_be_measured_is_refused(node: Node) -> None:
    layout = node.stack.layout
    command = [sys.executable, "-m", "kuasar.cli.ctl.main", "--config", layout.config, "bench"]
    none = subprocess.run([*command, "--engine", "no-such"], capture_output=True, text=True, check=False)
    assert none.returncode == 3
    assert "there is no engine 'no-such'" in none.stderr
    away = subprocess.run([*command, "--containerd", "/no/socket"], capture_output=True, text=True, check=False)
    assert away.returncode == 4
    assert "/no/socket" in away.stderr
    assert subprocess.run([*command, "-n", "201"], capture_output=True, check=False).returncode == 2
    assert os.path.exists(layout.containerd_socket)
