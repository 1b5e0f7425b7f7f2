"""The running whole gets rubbish over its real sockets: nobody ends, hangs or grows, and who behaves is served.

Only who is root can send any of it. Still a truncated frame of a peer that dies must not cost the others anything.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import zmq
from hypothesis import HealthCheck, given, settings

from kuasar.agent import protocol
from kuasar.api.gen.containerd.task.v3 import task_pb2 as pb
from kuasar.bus import messages
from kuasar.core.ttrpc import FrameType, encode_frame
from kuasar.supervisor import keeper_wire, zygote_wire
from scripts.stack import Stack
from tests.bench.smaps import pss_mib
from tests.e2e.engines import HOST_PID, OURS
from tests.e2e.gateway import NAMESPACE
from tests.e2e.harness import Container, Node
from tests.e2e.stack import sandbox_directory
from tests.e2e.task_connection import encode_call
from tests.garbage import spoilt, throw

pytestmark = pytest.mark.needs(OURS, HOST_PID)

EXAMPLES = int(os.environ.get("EXAMPLES", "100"))
_WARM_UP = 30
_MOST_MIB = 6.0
_MOST_DESCRIPTORS = 4


TASKS = [
    encode_call("State", pb.StateRequest(id="ghost"), 1, 1),
    encode_call("Wait", pb.WaitRequest(id="ghost"), 3, 1),
    encode_call("Kill", pb.KillRequest(id="ghost", signal=9), 5, 1),
    encode_frame(7, FrameType.DATA, b"x" * 100),
]
GRPC = [
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"),
    bytes.fromhex("000000040100000000"),
    bytes.fromhex("00000401040000000182868441"),
    bytes.fromhex("0000050000000000010000000000"),
]
BUS = [
    messages.encode(message)
    for message in (
        messages.Hello("ghost", "k8s.io", "runc", "kuasar-runc", "1", 1, 1, "ready", ["c"]),
        messages.Reply(1, 1, 1, {"a": 1}, None),
        messages.Event(1, 1, "task.exit", {"id": "x", "container_id": "c", "exec_id": "", "exit_status": 0}),
        messages.Heartbeat(1, 1, ["k"], 5),
    )
]
ZMTP = [
    bytes.fromhex("ff00000000000000017f03014e554c4c") + bytes(48),
    b"\x04\x26\x05READY" + bytes(32),
    b"\x00\x05hello",
]
AGENT = [
    protocol.encode(frame)
    for frame in (
        protocol.Request(1, "", "task.state", {"id": "ghost", "exec_id": ""}, 1.0),
        protocol.Request(2, "fuzz", "task.kill", {"id": "ghost", "exec_id": "", "signal": 9, "all": True}, 1.0),
        protocol.Data("ghost//stdout", 0, b"hello"),
        protocol.Window("ghost//stdout", 0, 100),
        protocol.Reply(1, {}),
    )
]
KEEPER = [
    keeper_wire.encode_request(request)
    for request in (
        keeper_wire.Request("list", prefix="fuzz", after=""),
        keeper_wire.Request("get", name="fuzz/x"),
        keeper_wire.Request("put", name="fuzz/x", meta=b"m"),
        keeper_wire.Request("accept", listener="fuzz/l", name="fuzz/y"),
    )
]
ZYGOTE = [zygote_wire.encode_request({"kind": "ghost", "title": "kuasar-ghost", "args": {"sandbox": "ghost"}})]


class Watched:
    """A process that must stay the one it is, and of its size."""

    def __init__(self, stack: Stack, program: str, pid: Callable[[], int]) -> None:
        self._program = program
        self._pid = pid
        self._before = (0, 0.0, 0)
        self._stack = stack
        self.note()

    def note(self) -> None:
        """As it is now."""
        self._before = self._look()

    def check(self) -> None:
        """It is the same, and not much larger."""
        pid, mib, descriptors = self._look()
        assert pid == self._before[0], f"{self._program} was replaced"
        assert mib < self._before[1] + _MOST_MIB, f"{self._program} grew from {self._before[1]:.1f} to {mib:.1f} MiB"
        assert descriptors <= self._before[2] + _MOST_DESCRIPTORS, (
            f"{self._program}: descriptors {self._before[2]} -> {descriptors}"
        )

    def _look(self) -> tuple[int, float, int]:
        pid = self._pid()
        return pid, pss_mib(pid), len(os.listdir(f"/proc/{pid}/fd"))


class Whole:
    """A stack with one pod in use."""

    def __init__(self, node: Node) -> None:
        self.stack = node.stack
        self.container: Container = node.pod("fuzzed").run_idle()
        self.gateway = node.gateway()
        pod, layout = self.container.pod, self.stack.layout
        self.agent_socket = f"{sandbox_directory(self.stack, pod.id)}/agent.sock"
        agent = self.gateway.status(pod.id, node.engine.handler).pid
        programs = ("gateway", "keeper", "zygote", f"sandbox:{pod.id}")
        self.watched = [Watched(self.stack, name, lambda name=name: self.stack.pid(name)) for name in programs]  # type: ignore[misc]  # the default binds it
        self.watched.append(Watched(self.stack, "agent", lambda: agent))
        self.run = layout.run

    def served(self) -> None:
        """Who behaves gets an answer."""
        request = pb.StateRequest(id=self.container.id)
        assert self.gateway.task.State(request, timeout=10, metadata=NAMESPACE).pid > 0

    def bombard(self, seeds: list[bytes], send: Callable[[bytes], None]) -> None:
        """All examples; the first ones warm up."""
        thrown = 0

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize="EXAMPLES" not in os.environ,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(data=spoilt(seeds))
        def example(data: bytes) -> None:
            nonlocal thrown
            send(data)
            self.served()
            thrown += 1
            if thrown == _WARM_UP:
                for each in self.watched:
                    each.note()

        example()
        assert thrown > _WARM_UP
        for each in self.watched:
            each.check()
        assert self.container.exec("echo", "alive").stdout == b"alive\n"
        assert self.container.running()


@pytest.fixture
def whole(node: Node) -> Whole:
    return Whole(node)


def test_the_task_socket(whole: Whole) -> None:
    whole.bombard(TASKS, lambda data: throw(f"{whole.run}/task.sock", data))


def test_the_grpc_socket(whole: Whole) -> None:
    whole.bombard(GRPC, lambda data: throw(f"{whole.run}/gateway.sock", data))


def test_the_bus_below_its_messages(whole: Whole) -> None:
    whole.bombard(ZMTP, lambda data: throw(f"{whole.run}/bus.sock", data, until_end=False))


def test_the_bus(whole: Whole) -> None:
    with ExitStack() as undo:
        context = undo.enter_context(zmq.Context(1))

        def send(data: bytes) -> None:
            with context.socket(zmq.DEALER) as peer:
                peer.setsockopt(zmq.LINGER, 1000)
                peer.setsockopt(zmq.IDENTITY, b"ghost@1")
                peer.connect(f"ipc://{whole.run}/bus.sock")
                for part in (data, data[: len(data) // 2]):
                    peer.send(part)

        whole.bombard(BUS, send)


def test_the_agent_s_socket(whole: Whole) -> None:
    """Each of these connections takes the agent away from its worker, which must get it back."""
    whole.bombard(AGENT, lambda data: throw(whole.agent_socket, data))


def test_the_keeper_s_socket(whole: Whole) -> None:
    whole.bombard(KEEPER, lambda data: throw(f"{whole.run}/keeper.sock", data, socket.SOCK_SEQPACKET))


def test_the_zygote_s_socket(whole: Whole) -> None:
    whole.bombard(ZYGOTE, lambda data: throw(f"{whole.run}/zygote.sock", data, socket.SOCK_SEQPACKET))
