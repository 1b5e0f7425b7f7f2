"""kill -9 of the gateway and of the keeper, again and again, with the real containerd watching: no container
notices."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from kuasar.core.errors import Unavailable
from kuasar.supervisor.keeper_client import Keeper
from scripts.stack import Stack
from tests.deadline import eventually
from tests.e2e.engines import EXEC, OURS, SHELL
from tests.e2e.harness import Container, Node
from tests.e2e.test_restarts import kill, reachable

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
