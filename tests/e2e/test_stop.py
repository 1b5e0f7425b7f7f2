"""How containers and pods end: asked first, killed after the grace period, and always with the true exit code."""

from __future__ import annotations

import time

import pytest

from kuasar.api.gen.cri.v1.pod_pb2 import PodSandboxState
from tests.e2e.engines import SHELL
from tests.e2e.harness import Pod


@pytest.mark.needs(SHELL)
def test_a_trapped_term_ends_with_the_code_of_the_trap(pod: Pod) -> None:
    container = pod.run(["sh", "-c", "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.1; done"])
    container.wait_for_log(b"ready\n")
    started = time.monotonic()
    container.stop(grace=20)
    assert time.monotonic() - started < 10
    assert container.status().exit_code == 5
    container.wait_for_log(b"ready\nbye\n")


@pytest.mark.needs(SHELL)
def test_what_ignores_term_is_killed_after_the_grace_period(pod: Pod) -> None:
    container = pod.run(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"])
    container.wait_for_log(b"ready\n")
    started = time.monotonic()
    container.stop(grace=1)
    assert 0.9 < time.monotonic() - started < 6
    assert container.status().exit_code == 137


def test_a_busy_container_is_killed_at_once(pod: Pod) -> None:
    container = pod.run(pod.engine.programs.spin())
    container.wait_for_log(b"spinning")
    started = time.monotonic()
    container.stop()
    assert time.monotonic() - started < 3
    assert container.status().exit_code == 137


def test_stopping_a_pod_ends_its_containers(pod: Pod) -> None:
    containers = [pod.run_idle(name) for name in ("one", "two")]
    created = pod.create(pod.engine.programs.idle(), "three")
    pod.stop()
    assert pod.status().state == PodSandboxState.SANDBOX_NOTREADY
    for container in containers:
        assert container.wait().exit_code == 137
    assert not created.running()


def test_removing_a_running_pod_removes_everything(pod: Pod) -> None:
    pod.run_idle()
    pod.cri.remove_pod(pod.id)
    assert pod.cri.list_containers(pod=pod.id) == []
    assert pod.id not in [found.id for found in pod.cri.list_pods()]


@pytest.mark.needs(SHELL)
def test_grandchildren_end_with_the_container(pod: Pod) -> None:
    container = pod.run(["sh", "-c", "setsid sleep 3600 & setsid sleep 3601 & exit 4"])
    assert container.wait().exit_code == 4
    container.remove()  # the leftovers fixture looks for the two


def test_a_container_is_replaced_in_its_pod(pod: Pod) -> None:
    first = pod.run(pod.engine.programs.exit(3))
    assert first.wait().exit_code == 3
    second = pod.run_idle()
    assert second.running()
    first.remove()
    assert second.running()
    second.stop()
    second.remove()
    command, expected = pod.engine.programs.say("third")
    third = pod.run(command)
    assert third.wait().exit_code == 0
    third.wait_for_log(expected.rstrip(b"\n"))
    assert third.config.metadata.attempt == 2
