"""Who dies and who must not notice: containerd, a worker, the gateway between calls, the zygote."""

from __future__ import annotations

import os
import select
import signal

import grpc
import pytest

from kuasar.cli.cri import CriError
from scripts.stack import Stack
from tests.deadline import eventually
from tests.e2e import leftovers
from tests.e2e.engines import EXEC, OURS, SHARED_KERNEL, SHELL, WASM
from tests.e2e.harness import Container, Node, Pod
from tests.e2e.stack import supervisorctl

COUNT = ["sh", "-c", "i=0; while :; do echo $i; i=$((i+1)); usleep 20000; done"]


def kill(stack: Stack, program: str) -> int:
    """kill -9 of a program of supervisord's; waits until it has a new process, whose pid is given."""
    victim = stack.pid(program)
    os.kill(victim, signal.SIGKILL)
    return eventually(lambda: stack.pid(program), f"{program} is replaced", until=lambda pid: pid not in (0, victim))


def reachable(pod: Pod) -> bool:
    """Whether containerd says the pod is ready. It dials a new gateway only after a pause, and says so meanwhile."""
    try:
        return pod.ready
    except CriError as error:
        assert error.code == grpc.StatusCode.UNAVAILABLE
        return False


def numbers(container: Container) -> list[int]:
    """What COUNT has written so far."""
    return [int(line) for line in container.log().split()]


@pytest.mark.needs(SHELL, EXEC)
def test_containerd_dies_and_everything_runs_on(node: Node) -> None:
    counting = node.pod("counting").run(COUNT)
    idle = node.pod("idle").run_idle()
    ended = idle.pod.run(idle.pod.engine.programs.exit(3), "ended")
    ended.wait()
    eventually(lambda: numbers(counting), "it counts", until=lambda seen: len(seen) > 5)
    kill(node.stack, "containerd")
    node.stack.wait_ready()
    assert counting.running()
    assert idle.running()
    assert ended.status().exit_code == 3
    assert counting.pod.ready
    assert idle.pod.ready
    assert idle.exec("echo", "alive").stdout == b"alive\n"
    before = numbers(counting)
    seen = eventually(lambda: numbers(counting), "the log goes on", until=lambda now: len(now) > len(before) + 5)
    assert seen == sorted(set(seen))  # nothing twice; what was written meanwhile waited in the FIFO
    counting.stop()
    assert counting.status().exit_code == 137
    assert idle.pod.run_idle("new").running()


@pytest.mark.needs(OURS)
def test_containerd_starts_while_a_pod_hangs_and_does_not_take_its_container_for_lost(node: Node) -> None:
    idle = node.pod("hanging").run_idle()
    hanging = idle.pod.process
    os.kill(hanging, signal.SIGSTOP)
    try:
        kill(node.stack, "containerd")
        node.stack.wait_ready()
        assert idle.running()
    finally:
        os.kill(hanging, signal.SIGCONT)
    assert idle.pod.ready
    ended = idle.pod.run(idle.pod.engine.programs.exit(3), "ended")
    assert ended.wait().exit_code == 3
    idle.stop()
    assert idle.wait().exit_code == 137


@pytest.mark.needs(WASM)
def test_containerd_dies_and_modules_run_on(node: Node) -> None:
    idle = node.pod().run_idle()
    kill(node.stack, "containerd")
    node.stack.wait_ready()
    assert idle.running()
    command, expected = node.engine.programs.say("after")
    after = idle.pod.run(command, "after")
    assert after.wait().exit_code == 0
    after.wait_for_log(expected.rstrip(b"\n"))
    idle.stop()
    assert idle.status().exit_code == 137


@pytest.mark.needs(SHARED_KERNEL)
def test_an_end_while_containerd_is_away_is_noticed_afterwards(node: Node) -> None:
    container = node.pod().run_idle()
    pid = container.pid
    watched = os.pidfd_open(pid)
    try:
        assert supervisorctl(node.stack, "stop", "containerd")[0] == 0
        signal.pidfd_send_signal(watched, signal.SIGKILL)
        assert select.select([watched], [], [], 10)[0]
    finally:
        os.close(watched)
        assert supervisorctl(node.stack, "start", "containerd")[0] == 0
        node.stack.wait_ready()
    # containerd forgets a task that it finds without processes, whatever the runtime: then it says 255, its "unknown"
    assert container.wait().exit_code in (137, 255)
    assert container.pod.ready
    assert container.pod.run_idle("new").running()


@pytest.mark.needs(OURS, SHELL, EXEC)
def test_a_worker_dies_and_its_pod_does_not_notice(node: Node) -> None:
    pod = node.pod()
    container = pod.run(["sh", "-c", "trap 'exit 6' TERM; echo ready; while :; do sleep 0.1; done"])
    container.wait_for_log(b"ready\n")
    pid = container.pid
    with container.exec_stream("sh", "-c", "echo begun; read x; echo $x; exit 4", stdin=True) as stream:
        stream.read_until(b"begun\n")
        kill(node.stack, f"sandbox:{pod.id}")
        assert container.exec("echo", "alive").stdout == b"alive\n"
        assert container.running()
        assert container.pid == pid
        stream.send_stdin(b"survived\n")
        result = stream.wait()
    assert (result.exit_code, result.stdout) == (4, b"begun\nsurvived\n")
    assert pod.ready
    container.stop(grace=10)
    assert container.status().exit_code == 6
    assert pod.run_idle("new").running()


@pytest.mark.needs(OURS)
def test_a_worker_dies_and_the_exit_code_is_right(node: Node) -> None:
    pod = node.pod()
    container = pod.run_idle()
    kill(node.stack, f"sandbox:{pod.id}")
    container.stop()
    assert container.status().exit_code == 137
    assert pod.run(pod.engine.programs.exit(8), "other").wait().exit_code == 8


@pytest.mark.needs(OURS)
def test_a_worker_dies_again_and_again(node: Node) -> None:
    pod = node.pod()
    container = pod.run_idle()
    for _ in range(5):
        kill(node.stack, f"sandbox:{pod.id}")
        assert container.running()
    assert pod.run(pod.engine.programs.exit(8), "other").wait().exit_code == 8
    pod.remove()
    eventually(lambda: leftovers.workers(node.stack), "no worker", until=lambda names: pod.id not in names)


@pytest.mark.needs(OURS)
def test_the_gateway_dies_between_calls_and_pods_can_be_used(node: Node) -> None:
    pod = node.pod()
    kill(node.stack, "gateway")
    node.stack.wait_ready()
    eventually(lambda: reachable(pod), "the pod is ready")
    command, expected = node.engine.programs.say("after")
    container = pod.run(command)
    assert container.wait().exit_code == 0
    container.wait_for_log(expected.rstrip(b"\n"))
    assert node.pod("another").ready
    pod.remove()


@pytest.mark.needs(OURS)
def test_the_gateway_is_restarted_by_an_operator(node: Node) -> None:
    pod = node.pod()
    node.stack.restart("gateway")
    eventually(lambda: reachable(pod), "the pod is ready")
    assert pod.run_idle().running()


@pytest.mark.needs(OURS)
def test_the_zygote_dies_and_pods_can_still_be_made(node: Node) -> None:
    pod = node.pod()
    container = pod.run_idle()
    kill(node.stack, "zygote")
    assert node.pod("another").run_idle().running()
    assert container.running()
