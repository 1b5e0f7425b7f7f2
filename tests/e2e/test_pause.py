"""Freezing a container. CRI has no call for it, so containerd's own client is used, as an operator would."""

from __future__ import annotations

import pytest

from tests.deadline import eventually
from tests.e2e import cgroups
from tests.e2e.engines import EXEC, PAUSE, PAUSE_ONE, SHARED_KERNEL, SHELL, STATS
from tests.e2e.harness import Container, Pod

pytestmark = pytest.mark.needs(PAUSE)


def used(container: Container) -> int:
    """Processor time so far, in nanoseconds."""
    return container.pod.cri.stats(container.id).cpu.usage_core_nano_seconds.value


def task_state(pod: Pod, container: Container) -> str:
    """What `ctr task list` says of a container."""
    for line in pod.stack.ctr("tasks", "list").splitlines():
        if line.startswith(container.id):
            return line.split()[2]
    return "absent"


@pytest.mark.needs(STATS, PAUSE_ONE)
def test_a_paused_container_does_nothing_until_it_is_resumed(pod: Pod) -> None:
    container = pod.run(pod.engine.programs.spin())
    container.wait_for_log(b"spinning")
    pod.stack.ctr("tasks", "pause", container.id)
    assert task_state(pod, container) == "PAUSED"
    if not cgroups.UNIFIED and pod.engine.can(SHARED_KERNEL):
        assert cgroups.read(container.pid, "frozen") == "FROZEN"
    before = used(container)
    witness = pod.run(pod.engine.programs.spin(), "witness")  # its time passes, the other's does not
    eventually(lambda: used(witness), "time passes", until=lambda spent: spent > 200_000_000)
    assert used(container) - before < 20_000_000
    pod.stack.ctr("tasks", "resume", container.id)
    assert task_state(pod, container) == "RUNNING"
    eventually(lambda: used(container), "it works again", until=lambda now: now > before + 100_000_000)


def test_a_paused_container_can_be_killed(pod: Pod) -> None:
    container = pod.run_idle()
    pod.stack.ctr("tasks", "pause", container.id)
    container.stop()
    assert container.status().exit_code == 137


def test_a_pod_with_a_paused_container_can_be_removed(pod: Pod) -> None:
    pod.stack.ctr("tasks", "pause", pod.run_idle().id)
    pod.remove()
    assert pod.cri.list_containers(pod=pod.id) == []


@pytest.mark.needs(SHELL, EXEC, PAUSE_ONE)
def test_its_neighbour_goes_on(pod: Pod) -> None:
    frozen, neighbour = pod.run_idle("frozen"), pod.run_idle("neighbour")
    pod.stack.ctr("tasks", "pause", frozen.id)
    assert neighbour.exec("true").exit_code == 0
    pod.stack.ctr("tasks", "resume", frozen.id)
    assert frozen.exec("true").exit_code == 0
