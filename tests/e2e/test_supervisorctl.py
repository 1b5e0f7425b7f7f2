"""What an operator does with supervisorctl: look, read, stop, start, restart and signal a sandbox's worker."""

from __future__ import annotations

import signal

import pytest

from tests.deadline import eventually
from tests.e2e.engines import OURS
from tests.e2e.harness import Node, Pod
from tests.e2e.stack import supervisorctl

pytestmark = pytest.mark.needs(OURS)


def program(pod: Pod) -> str:
    """The worker of a pod as supervisord names it."""
    return f"sandbox:{pod.id}"


def test_status_shows_every_sandbox(node: Node) -> None:
    pods = [node.pod() for _ in range(2)]
    _, output = supervisorctl(node.stack, "status")
    for pod in pods:
        (line,) = [line for line in output.splitlines() if line.startswith(program(pod))]
        assert "RUNNING" in line
        assert f"pid {node.stack.pid(program(pod))}" in line
    pods[0].remove()
    _, output = supervisorctl(node.stack, "status")
    assert program(pods[0]) not in output
    assert program(pods[1]) in output


def test_tail_shows_the_worker_s_log(pod: Pod) -> None:
    pod.run_idle()
    code, output = supervisorctl(pod.stack, "tail", program(pod))
    assert code == 0
    assert "level" in output or "info" in output
    assert len(output.splitlines()) > 1


def test_a_stopped_worker_stays_stopped_until_it_is_started(pod: Pod) -> None:
    container = pod.run_idle()
    code, output = supervisorctl(pod.stack, "stop", program(pod))
    assert code == 0, output
    assert "STOPPED" in supervisorctl(pod.stack, "status", program(pod))[1]
    assert pod.stack.pid(program(pod)) == 0
    code, output = supervisorctl(pod.stack, "start", program(pod))
    assert code == 0, output
    assert "RUNNING" in supervisorctl(pod.stack, "status", program(pod))[1]
    assert container.running()
    container.stop()
    assert container.status().exit_code == 137


def test_a_stop_is_visible_in_what_the_gateway_says(pod: Pod) -> None:
    """Requests wait for a worker; with none coming the answer says so."""
    container = pod.run_idle()
    supervisorctl(pod.stack, "stop", program(pod))
    try:
        assert container.running()  # containerd knows it without asking
    finally:
        supervisorctl(pod.stack, "start", program(pod))
    assert pod.run(pod.engine.programs.exit(2), "next").wait().exit_code == 2


def test_restart(pod: Pod) -> None:
    container = pod.run_idle()
    before = pod.stack.pid(program(pod))
    code, output = supervisorctl(pod.stack, "restart", program(pod))
    assert code == 0, output
    assert pod.stack.pid(program(pod)) not in (0, before)
    assert container.running()
    assert pod.run(pod.engine.programs.exit(5), "other").wait().exit_code == 5


@pytest.mark.parametrize("name", ["TERM", "KILL"])
def test_signal(pod: Pod, name: str) -> None:
    container = pod.run_idle()
    before = pod.stack.pid(program(pod))
    code, output = supervisorctl(pod.stack, "signal", str(signal.Signals[f"SIG{name}"].value), program(pod))
    assert code == 0, output
    eventually(lambda: pod.stack.pid(program(pod)), "a successor", until=lambda pid: pid not in (0, before))
    assert container.running()
    assert pod.run(pod.engine.programs.exit(5), "other").wait().exit_code == 5


def test_update_leaves_sandboxes_alone(pod: Pod) -> None:
    container = pod.run_idle()
    before = pod.stack.pid(program(pod))
    code, output = supervisorctl(pod.stack, "update")
    assert code == 0, output
    assert pod.stack.pid(program(pod)) == before
    assert container.running()


def test_unknown_sandboxes_are_named(node: Node) -> None:
    _, output = supervisorctl(node.stack, "status", "sandbox:no-such-pod")
    assert "no such" in output
