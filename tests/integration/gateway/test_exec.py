"""``Admin.Exec`` as any program may call it: what is refused, and what is bounded."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from kuasar.api.gen.kuasar.admin.v1 import admin_pb2 as pb
from kuasar.gateway.commands import WINDOW_BYTES
from tests import needs
from tests.deadline import eventually
from tests.integration.gateway.node import SECONDS, Node, running

pytestmark = needs.ROOT
MOST_OF_A_SANDBOX = 16


@pytest.fixture(scope="module")
def shared() -> Iterator[Node]:
    with running() as made:
        made.admin.ListSandboxes(pb.ListSandboxesRequest(), timeout=SECONDS, wait_for_ready=True)
        made.run("aaa1", "web")
        yield made


@pytest.fixture
def node(shared: Node) -> Iterator[Node]:
    yield shared
    directory = Path(shared.config.state_dir, "commands")
    eventually(lambda: list(directory.glob("*")), "no FIFO is left", until=lambda left: not left, timeout=SECONDS)


class Exec:
    """One call, to which requests can be added."""

    def __init__(self, node: Node, *requests: pb.ExecRequest) -> None:
        self._requests: queue.SimpleQueue[pb.ExecRequest | None] = queue.SimpleQueue()
        for request in requests:
            self.send(request)
        self.call: Any = node.admin.Exec(iter(self._requests.get, None), timeout=SECONDS)

    def send(self, request: pb.ExecRequest) -> None:
        self._requests.put(request)

    def refusal(self) -> tuple[grpc.StatusCode, str]:
        """How the call fails."""
        with pytest.raises(grpc.RpcError):
            for _ in self.call:
                pass
        self._requests.put(None)
        return self.call.code(), self.call.details()

    def until_exit(self) -> tuple[bytes, pb.ExecExit]:
        """All output, and the end."""
        output = b""
        for response in self.call:
            output += response.stdout
            if response.HasField("exit"):
                self._requests.put(None)
                return output, response.exit
        raise AssertionError("no exit")

    def cancel(self) -> None:
        self.call.cancel()
        self._requests.put(None)


def start(*args: str, sandbox: str = "aaa1", **options: Any) -> pb.ExecRequest:
    return pb.ExecRequest(start=pb.ExecStart(id=sandbox, args=args, **options))


INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("requests", "code", "words"),
    [
        ([pb.ExecRequest(signal=2)], INVALID, "start: is needed as the first request"),
        ([start("true", sandbox="a/../b")], INVALID, "start.id: "),
        ([start("true", sandbox="bbb2")], NOT_FOUND, "sandbox bbb2 does not exist"),
        ([start()], INVALID, "start.args: must not be empty"),
        ([start("a\0b")], INVALID, "args: strings are needed"),
        ([start("true", timeout_seconds=-1.0)], INVALID, "start.timeout_seconds: -1.0 is no duration"),
        ([start("sleep", "100"), start("true")], INVALID, "start: the command has been started"),
        ([start("sleep", "100"), pb.ExecRequest(signal=65)], INVALID, "signal: 65 is no signal"),
        ([start("sleep", "100"), pb.ExecRequest()], INVALID, "request: is empty"),
        ([start("sleep", "100"), pb.ExecRequest(stdin=b"x")], INVALID, "stdin: the command has no input"),
        (
            [start("sleep", "100"), pb.ExecRequest(resize=pb.TerminalSize(width=1, height=1))],
            INVALID,
            "resize: the process has no terminal",
        ),
    ],
)
def test_what_is_wrong_is_refused(
    node: Node, requests: list[pb.ExecRequest], code: grpc.StatusCode, words: str
) -> None:
    found, details = Exec(node, *requests).refusal()
    assert found is code
    assert details.startswith(words)


def test_more_input_than_the_window_is_refused(node: Node) -> None:
    chunks = [pb.ExecRequest(stdin=bytes(32768)) for _ in range(2 + (WINDOW_BYTES + 65536) // 32768)]
    code, details = Exec(node, start("sleep", "100", stdin=True), *chunks).refusal()
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details == f"stdin: more than {WINDOW_BYTES} bytes wait for the command"


def test_what_has_been_taken_is_told(node: Node) -> None:
    call = Exec(node, start("cat", stdin=True), pb.ExecRequest(stdin=b"abc"), pb.ExecRequest(stdin=b"def"))
    taken = 0
    while taken < 6:
        taken = max(taken, next(call.call).stdin_taken)
    call.send(pb.ExecRequest(close_stdin=True))
    _, end = call.until_exit()
    assert (end.status, end.reason) == (0, "")


def test_commands_of_a_sandbox_are_bounded(node: Node) -> None:
    calls = [Exec(node, start("sh", "-c", "echo ready; exec sleep 100")) for _ in range(MOST_OF_A_SANDBOX)]
    try:
        for call in calls:
            assert next(call.call).stdout == b"ready\n"
        code, details = Exec(node, start("true")).refusal()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details == "16 commands run in sandbox aaa1 already"
    finally:
        for call in calls:
            call.cancel()
    eventually(lambda: _status(node), "there is room again", until=lambda status: status == 0, timeout=SECONDS)


def _status(node: Node) -> int:
    """The exit status of a command; -1 if it was refused."""
    try:
        return int(Exec(node, start("true")).until_exit()[1].status)
    except grpc.RpcError:
        return -1


def test_many_one_after_the_other_leave_nothing(node: Node) -> None:
    gateway = node.admin.LogLevel(pb.LogLevelRequest(gateway=True), timeout=SECONDS)
    assert gateway.processes[0].process == "gateway"
    for number in itertools.islice(itertools.count(), 20):
        output, end = Exec(node, start("sh", "-c", f"echo {number}; exit {number}")).until_exit()
        assert (output, end.status) == (f"{number}\n".encode(), number)
