"""What the reconciler does on a node: a pod whose record is lost is freed, and everybody else runs on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from kuasar.core import tombstones
from scripts.stack import Stack
from tests.deadline import eventually
from tests.e2e import leftovers
from tests.e2e.engines import OURS
from tests.e2e.harness import Node


def reconcile(stack: Stack, *arguments: str) -> list[dict[str, Any]]:
    """One round by hand; gives its steps."""
    argv = [sys.executable, "-m", "kuasar.supervisor.reconcile", "--config", stack.layout.config, "--json", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    steps: list[dict[str, Any]] = json.loads(done.stdout)["actions"]
    return steps


@pytest.mark.needs(OURS)
def test_a_node_in_order_needs_nothing(node: Node) -> None:
    node.pod().run_idle()
    assert reconcile(node.stack, "--dry-run") == []


@pytest.mark.needs(OURS)
def test_a_pod_whose_record_is_lost_is_freed_and_can_be_removed(node: Node) -> None:
    stack = node.stack
    bystander = node.pod("bystander").run_idle()
    victim = node.pod("victim").run_idle()
    pod = victim.pod
    directory = f"{stack.layout.run}/sandboxes/{pod.id}"
    with open(f"{directory}/sandbox.msgpack", "wb") as file:
        file.write(b"\xff rubbish")
    worker = stack.pid(f"sandbox:{pod.id}")
    os.kill(worker, signal.SIGKILL)
    aside = f"{stack.layout.run}/damaged/{pod.id}.msgpack"
    # Its new worker sets the record aside; then it takes two rounds, of which the service may do one.
    eventually(
        lambda: reconcile(stack) or os.path.exists(directory),
        "the pod is freed",
        until=lambda left: not left,
    )
    with open(aside, "rb") as file:
        assert file.read() == b"\xff rubbish"
    assert pod.id not in leftovers.workers(stack)
    buried = {each.sandbox: each for each in tombstones.read_all(stack.layout.run)}
    assert "its record is lost" in buried[pod.id].reason
    assert bystander.running()
    # What containerd thinks of it can be taken away in the usual way.
    pod.stop()
    pod.remove()
    assert bystander.running()
