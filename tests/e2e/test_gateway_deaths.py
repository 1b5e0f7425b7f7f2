"""kill -9 of the gateway and of the keeper, again and again, with the real containerd watching: no container
notices."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import grpc
import pytest

from kuasar.cli.cri import CriError
from kuasar.core.errors import Unavailable
from kuasar.supervisor.keeper_client import Keeper
from scripts.stack import Stack
from tests import failpoints
from tests.deadline import eventually
from tests.e2e import leftovers
from tests.e2e.engines import EXEC, HOST_NETWORK, OURS, SHARED_KERNEL, SHELL
from tests.e2e.harness import Container, Node
from tests.e2e.test_restarts import kill, numbers, reachable

pytestmark = pytest.mark.needs(OURS, SHELL, EXEC)

KILLS = 20
COUNT = ["sh", "-c", "i=0; while :; do echo $i; echo $i >&2; i=$((i+1)); usleep 2000; done"]
UNTIL_TOLD = ["sh", "-c", "while [ ! -e /tmp/told ]; do usleep 20000; done; exit 9"]


class Execs:
    """Runs execs with known exit codes one after the other, in a thread."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._stop = threading.Event()
        self.done = 0

    def run(self) -> list[tuple[int, int, bytes]]:
        """What was not as it should be: expected code, code, output."""
        wrong = []
        while not self._stop.is_set():
            expected = self.done % 100
            result = self._container.exec("sh", "-c", f"echo {expected}; exit {expected}", timeout=30)
            if (result.exit_code, result.stdout) != (expected, f"{expected}\n".encode()):
                wrong.append((expected, result.exit_code, result.stdout))
            self.done += 1
        return wrong

    def progress(self) -> None:
        """Until one more is done."""
        before = self.done
        eventually(lambda: self.done, "execs go on", timeout=30, until=lambda done: done > before)

    def stop(self) -> None:
        self._stop.set()


@contextmanager
def execs(container: Container) -> Iterator[Execs]:
    """Execs in the background; all of them must have been right."""
    running = Execs(container)
    with ThreadPoolExecutor(1) as pool:
        wrong = pool.submit(running.run)
        try:
            running.progress()
            yield running
        finally:
            running.stop()
    assert running.done > 0
    assert wrong.result() == []


def kept(stack: Stack) -> list[str]:
    """The connections that the keeper holds; empty while it is away."""
    keeper = Keeper(f"{stack.layout.run}/keeper.sock")
    try:
        return keeper.list("gateway/task/")
    except Unavailable:
        return []
    finally:
        keeper.close()


def assert_contiguous(container: Container) -> None:
    """Nothing is missing, doubled or torn on either stream."""
    for stream in ("stdout", "stderr"):
        seen = container.log(stream).split()
        assert len(seen) > 5
        assert seen == [str(number).encode() for number in range(len(seen))]


def test_the_gateway_dies_again_and_again_and_no_container_notices(node: Node) -> None:
    pod = node.pod()
    counting, told, busy = pod.run(COUNT, "counting"), pod.run(UNTIL_TOLD, "told"), pod.run_idle("busy")
    pids = [container.pid for container in (counting, told, busy)]
    with execs(busy) as running:
        for _ in range(KILLS):
            eventually(lambda: node.stack.pid("gateway"), "it runs", until=lambda pid: is_up(node.stack, pid))
            kill(node.stack, "gateway")
            running.progress()
    assert [container.pid for container in (counting, told, busy)] == pids
    assert all(container.running() for container in (counting, told, busy))
    told.sh("touch /tmp/told")
    assert told.wait().exit_code == 9
    counting.stop()
    assert counting.status().exit_code == 137
    assert_contiguous(counting)
    eventually(lambda: reachable(pod), "the pod is ready")
    pod.remove()
    eventually(lambda: kept(node.stack), "no connection is left", until=lambda names: not names)
    eventually(lambda: os.listdir(f"{node.stack.layout.run}/journal"), "no log is left", until=lambda names: not names)


@pytest.mark.parametrize("point", ["seen", "recorded", "consumed", "done", "placed", "sent"])
def test_the_gateway_dies_in_every_call_of_a_container(node: Node, point: str) -> None:
    """Create, State, Connect, Wait, Start, Exec, Kill, Delete …: the death comes one call later each time."""
    name = f"gateway.{'answer' if point in ('placed', 'sent') else 'request'}.{point}"
    armed = f"{node.stack.layout.run}/failpoints"
    pod = node.pod()
    try:
        for skip in range(0, 12, 2):
            # containerd needs the Sandbox API to create a container, so the gateway has to be there
            eventually(lambda: node.stack.pid("gateway"), "it runs", until=lambda pid: is_up(node.stack, pid))
            eventually(lambda: reachable(pod), "the pod is ready", timeout=30)
            container = pod.create(["sh", "-c", "echo begun; sleep 1000"], "main")
            failpoints.arm(armed, name, f"kill skip={skip} times=1")
            container.start()
            container.wait_for_log(b"begun\n")
            result = container.exec("sh", "-c", f"echo {skip}; exit {skip + 1}")
            assert (result.exit_code, result.stdout) == (skip + 1, f"{skip}\n".encode())
            container.stop()
            assert container.status().exit_code == 137
            assert failpoints.hits(armed, name) > skip
            failpoints.disarm(armed, name)
            container.remove()
    finally:
        failpoints.disarm(armed, name)
    eventually(lambda: reachable(pod), "the pod is ready", timeout=30)


@pytest.mark.needs(SHARED_KERNEL)
def test_the_gateway_dies_while_containers_end(node: Node) -> None:
    pod = node.pod()
    for _ in range(3):
        killed, told = pod.run_idle("killed"), pod.run(UNTIL_TOLD, "told")
        victim = os.pidfd_open(killed.pid)
        try:
            before = node.stack.pid("gateway")
            os.kill(before, signal.SIGKILL)
            signal.pidfd_send_signal(victim, signal.SIGKILL)
        finally:
            os.close(victim)
        assert killed.wait().exit_code == 137
        told.sh("touch /tmp/told")
        assert told.wait().exit_code == 9
        eventually(lambda: reachable(pod), "the pod is ready")


def test_the_gateway_dies_while_an_exec_talks(node: Node) -> None:
    container = node.pod().run_idle()
    with container.exec_stream(
        "sh", "-c", "echo begun; read x; echo $x; read x; echo $x; exit 4", stdin=True
    ) as stream:
        stream.read_until(b"begun\n")
        kill(node.stack, "gateway")
        stream.send_stdin(b"one\n")
        stream.read_until(b"one\n")
        kill(node.stack, "gateway")
        stream.send_stdin(b"two\n")
        result = stream.wait()
    assert result.exit_code == 4
    assert result.stdout.endswith(b"two\n")
    eventually(lambda: reachable(container.pod), "the pod is ready", timeout=30)


def test_the_keeper_dies_and_then_the_gateway(node: Node) -> None:
    pod = node.pod()
    counting, busy = pod.run(COUNT, "counting"), pod.run_idle("busy")
    with execs(busy) as running:
        for _ in range(5):
            held = kept(node.stack)
            assert len(held) == 2
            kill(node.stack, "keeper")
            running.progress()
            eventually(lambda: kept(node.stack), "it has everything again", until=held.__eq__)
            kill(node.stack, "gateway")
            running.progress()
    assert counting.running()
    counting.stop()
    assert counting.status().exit_code == 137
    assert_contiguous(counting)
    eventually(lambda: reachable(pod), "the pod is ready", timeout=30)


def test_the_gateway_and_the_worker_die_together(node: Node) -> None:
    pod = node.pod()
    container, told = pod.run_idle(), pod.run(UNTIL_TOLD, "told")
    with execs(container) as running:
        for _ in range(3):
            worker, gateway = node.stack.pid(f"sandbox:{pod.id}"), node.stack.pid("gateway")
            os.kill(worker, signal.SIGKILL)
            os.kill(gateway, signal.SIGKILL)
            running.progress()
    told.sh("touch /tmp/told")
    assert told.wait().exit_code == 9
    container.stop()
    assert container.status().exit_code == 137
    eventually(lambda: reachable(pod), "the pod is ready", timeout=30)


def test_supervisord_dies_and_everything_runs_on(node: Node) -> None:
    """It takes gateway, workers and, in this stack, containerd along; the keeper waits for the next one."""
    stack, pod = node.stack, node.pod()
    counting, idle = pod.run(COUNT, "counting"), pod.run_idle("idle")
    pids = [counting.pid, idle.pid]
    daemon = stack.supervisord_pid()
    victims = [os.pidfd_open(pid) for pid in (daemon, *(stack.pid(name) for name in ("gateway", "containerd")))]
    keeper = stack.pid("keeper")
    try:
        os.kill(daemon, signal.SIGKILL)
        for victim in victims:
            assert select.select([victim], [], [], 15)[0]
    finally:
        for victim in victims:
            os.close(victim)
    assert os.path.exists(f"/proc/{keeper}")
    stack.start()
    eventually(lambda: reachable(pod), "the pod is ready", timeout=30)
    assert [counting.pid, idle.pid] == pids
    assert counting.running()
    assert idle.exec("sh", "-c", "exit 5").exit_code == 5
    before = len(numbers(counting))
    seen = eventually(lambda: numbers(counting), "the log goes on", until=lambda now: len(now) > before + 5)
    assert seen == sorted(set(seen))  # what containerd had read and not written when it was killed is lost
    counting.stop()
    assert counting.status().exit_code == 137
    eventually(lambda: os.path.exists(f"/proc/{keeper}"), "the old keeper has left", until=lambda there: not there)


@pytest.mark.needs(HOST_NETWORK)  # as a sandbox without a pod configuration has it
def test_sandbox_calls_in_flight_are_repeated_and_succeed(node: Node) -> None:
    """They may fail with UNAVAILABLE, and with nothing else; the repetition finds what the first try has done."""
    stack, api, handler = node.stack, node.gateway(), node.engine.handler
    for n in range(2):
        pod = f"direct-{os.getpid()}-{n}"
        for call in (api.create, api.start, api.stop, api.shutdown):
            once = partial(attempt, call, pod, handler)
            victim = eventually(lambda: stack.pid("gateway"), "it runs", until=lambda pid: is_up(stack, pid))
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(once)
                os.kill(victim, signal.SIGKILL)
                error = answer.result(timeout=60)
            if error is not None:
                assert error.code() == grpc.StatusCode.UNAVAILABLE, error
                assert eventually(once, "an answer", until=is_answered, timeout=60) is None
    eventually(lambda: os.listdir(f"{stack.layout.run}/unclaimed"), "all are settled", until=lambda names: not names)


def attempt(call: Callable[[str, str], object], pod: str, handler: str) -> grpc.RpcError | None:
    try:
        call(pod, handler)
    except grpc.RpcError as error:
        return error
    return None


def is_up(stack: Stack, gateway: int) -> bool:
    """Whether it has run for long enough that supervisord starts the next one without a pause."""
    states = {info["pid"]: info["statename"] for info in stack.programs()}
    return states.get(gateway) == "RUNNING"


def is_answered(error: grpc.RpcError | None) -> bool:
    return error is None or error.code() != grpc.StatusCode.UNAVAILABLE


def test_a_pod_whose_making_was_broken_is_removed(node: Node) -> None:
    """containerd forgets it without a word; so what was made for it must go by itself."""
    stack = node.stack
    eventually(lambda: again(node), "pods can be made", timeout=30)
    before = set(leftovers.workers(stack))
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(node.pod)
        (pod,) = eventually(lambda: set(leftovers.workers(stack)) - before, "its worker is there")
        os.kill(stack.pid("gateway"), signal.SIGKILL)
        error = made.exception(timeout=60)
    if error is not None:
        assert isinstance(error, CriError)
        assert error.code == grpc.StatusCode.UNAVAILABLE
        eventually(lambda: pod in leftovers.workers(stack), "it is removed", until=lambda there: not there, timeout=60)
    eventually(lambda: again(node), "another can be made", timeout=30)


def again(node: Node) -> bool:
    try:
        return node.pod("again").ready
    except CriError as error:
        assert error.code == grpc.StatusCode.UNAVAILABLE
        return False
