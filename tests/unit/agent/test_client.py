"""The client and the channel against a peer on a real socket pair, which the test plays."""

from __future__ import annotations

import socket
import time
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from kuasar.agent.channel import MAX_BUFFERED_BYTES, Channel
from kuasar.agent.client import AgentClient
from kuasar.agent.protocol import (
    TRACE,
    VERSION,
    Ack,
    Data,
    Event,
    Frame,
    FrameReader,
    Hello,
    Reply,
    Request,
    Window,
    encode,
)
from kuasar.core import spans
from kuasar.core.aio import Loop
from kuasar.core.errors import DeadlineExceeded, InvalidArgument, NotFound, Unavailable
from tests.garbage import spoilt

HELLO = Hello(VERSION, "abc", 7, "oci", ["exec"], [])


class Peer:
    """The agent's end, played by the test: blocking, with a time limit."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._reader = FrameReader()
        self._frames: list[Frame] = []

    def send(self, *frames: Frame) -> None:
        self.sock.sendall(b"".join(map(encode, frames)))

    def receive(self) -> Frame:
        while not self._frames:
            data = self.sock.recv(65536)
            assert data, "the client hung up"
            self._frames += self._reader.feed(data)
        return self._frames.pop(0)

    def receive_request(self) -> Request:
        frame = self.receive()
        assert isinstance(frame, Request)
        return frame


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def pair(loop: Loop) -> Iterator[tuple[AgentClient, Peer]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(5)
    client = AgentClient(loop, ours)
    yield client, Peer(theirs)
    client.close()
    theirs.close()


def run(loop: Loop, coro: Coroutine[Any, Any, Any]) -> Any:
    return loop.run(loop.wait_for(coro, time.monotonic() + 10))


@pytest.mark.parametrize("can", [True, False])
def test_only_an_agent_that_can_is_asked_to_record(loop: Loop, pair: tuple[AgentClient, Peer], can: bool) -> None:
    """One that was started before there were traces would hang up."""
    client, peer = pair
    span = ["task.start", "11" * 8, 1, 2, "agent", {}, ""]

    async def scenario() -> None:
        peer.send(replace(HELLO, capabilities=[TRACE]) if can else HELLO)
        await client.hello()
        trace = spans.begin(f"00-{'ab' * 16}-{'cd' * 8}-01", "worker")
        assert trace is not None
        call = loop.spawn(client.call("task.start", {}))
        await loop.sleep(0)
        request = peer.receive_request()
        context = spans.parse(request.trace or "")
        assert (context is not None) == can
        peer.send(Reply(request.n, {"pid": 5}, spans={"22" * 8: span, "odd": 1} if can else None))
        assert await call == {"pid": 5}
        if context is None:
            assert not trace.spans
        else:
            assert trace.spans["22" * 8] == span
            assert trace.spans[context.span][:2] == ["call task.start", "cd" * 8]
            assert len(trace.spans) == 2

    run(loop, scenario())


def test_hello_then_a_call_and_its_answer(loop: Loop, pair: tuple[AgentClient, Peer]) -> None:
    client, peer = pair

    async def scenario() -> None:
        peer.send(HELLO)
        assert await client.hello(time.monotonic() + 5) == HELLO
        call = loop.spawn(client.call("task.kill", {"id": "a"}, key="k1", deadline=time.monotonic() + 5))
        await loop.sleep(0)
        request = peer.receive_request()
        assert (request.op, request.key, request.body) == ("task.kill", "k1", {"id": "a"})
        assert request.timeout is not None
        assert 4 < request.timeout <= 5
        peer.send(Reply(request.n, body={"pid": 3}))
        assert await call == {"pid": 3}

    run(loop, scenario())


def test_answers_may_come_in_any_order_and_errors_keep_their_class(loop: Loop, pair: tuple[AgentClient, Peer]) -> None:
    client, peer = pair

    async def scenario() -> None:
        first = loop.spawn(client.call("task.wait", {"id": "a"}))
        second = loop.spawn(client.call("task.wait", {"id": "b"}))
        await loop.sleep(0)
        numbers = {request.body["id"]: request.n for request in (peer.receive_request(), peer.receive_request())}
        peer.send(Reply(numbers["b"], error=NotFound("no b").to_wire()), Reply(numbers["a"], body={"exit_status": 0}))
        assert await first == {"exit_status": 0}
        with pytest.raises(NotFound, match="no b"):
            await second

    run(loop, scenario())


def test_a_deadline_ends_the_call_and_a_late_answer_is_dropped(loop: Loop, pair: tuple[AgentClient, Peer]) -> None:
    client, peer = pair

    async def scenario() -> None:
        with pytest.raises(DeadlineExceeded, match="info"):
            await client.call("info", {}, deadline=time.monotonic() + 0.01)
        late = peer.receive_request()
        peer.send(Reply(late.n, body={"late": True}))
        call = loop.spawn(client.call("info", {}))
        await loop.sleep(0)
        peer.send(Reply(peer.receive_request().n, body={"late": False}))
        assert await call == {"late": False}

    run(loop, scenario())


def test_the_death_of_the_agent_wakes_everyone(loop: Loop, pair: tuple[AgentClient, Peer]) -> None:
    client, peer = pair
    told: list[int] = []

    async def scenario() -> None:
        client.on_close = lambda: told.append(1)
        calls = [loop.spawn(client.call("task.wait", {"id": str(n)})) for n in range(3)]
        greeting = loop.spawn(client.hello())
        await loop.sleep(0)
        peer.sock.close()
        for call in calls:
            with pytest.raises(Unavailable):
                await call
        with pytest.raises(Unavailable):
            await greeting
        with pytest.raises(Unavailable):
            await client.call("info", {})
        assert told == [1]
        client.on_close = lambda: told.append(2)  # set too late: told nevertheless
        await loop.sleep(0)

    run(loop, scenario())
    assert told == [1, 2]


def test_closing_wakes_the_waiters_but_is_no_loss(loop: Loop, pair: tuple[AgentClient, Peer]) -> None:
    client, _ = pair
    client.on_close = lambda: pytest.fail("on_close is for the agent's end only")

    async def scenario() -> None:
        call = loop.spawn(client.call("info", {}))
        await loop.sleep(0)
        client.close()
        with pytest.raises(Unavailable):
            await call

    run(loop, scenario())


def test_events_from_before_the_handler_come_first_and_acks_go_out(loop: Loop, pair: tuple[AgentClient, Peer]) -> None:
    client, peer = pair
    seen: list[int] = []

    async def scenario() -> None:
        peer.send(HELLO, Event(1, "task.exit", {}), Event(2, "task.exit", {}))
        await client.hello()
        client.on_event = lambda seq, topic, body: seen.append(seq)
        peer.send(Event(3, "task.oom", {}))
        while len(seen) < 3:
            await loop.sleep(0.001)
        client.ack_event(3)
        client.ack_keys(["k"])

    run(loop, scenario())
    assert seen == [1, 2, 3]
    assert [peer.receive(), peer.receive()] == [Ack([], 3), Ack(["k"], 0)]


def test_frames_of_streams_from_before_the_handler_come_first(loop: Loop, pair: tuple[AgentClient, Peer]) -> None:
    client, peer = pair
    seen: list[Data | Window] = []

    async def scenario() -> None:
        peer.send(HELLO, Window("c//stdin", 0, 10), Data("c//stdout", 0, b""))
        await client.hello()
        client.on_stream = seen.append
        peer.send(Window("c//stdin", 5, 15))
        while len(seen) < 3:
            await loop.sleep(0.001)
        client.send(Data("c//stdin", 5, b"hello", True))

    run(loop, scenario())
    assert seen == [Window("c//stdin", 0, 10), Data("c//stdout", 0, b""), Window("c//stdin", 5, 15)]
    assert peer.receive() == Data("c//stdin", 5, b"hello", True)
    client.close()
    client.send(Window("c//stdout", 0, 0))  # harmless


def test_a_body_that_cannot_travel_is_an_invalid_argument(loop: Loop, pair: tuple[AgentClient, Peer]) -> None:
    client, _ = pair
    with pytest.raises(InvalidArgument, match=r"task\.create"):
        run(loop, client.call("task.create", {"spec": "\ud800"}))


def test_another_version_is_refused(loop: Loop, pair: tuple[AgentClient, Peer]) -> None:
    client, peer = pair
    peer.send(Hello(9, "abc", 7, "oci", [], []))
    with pytest.raises(Unavailable, match="version 9"):
        run(loop, client.hello())


def test_garbage_from_the_agent_ends_the_connection_only(loop: Loop, pair: tuple[AgentClient, Peer]) -> None:
    client, peer = pair
    peer.sock.sendall(b"\x00\x00\x00\x01\xc1")
    with pytest.raises(Unavailable, match="protocol error"):
        run(loop, client.call("info", {}))


def test_a_peer_that_does_not_read_is_given_up(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    reasons: list[str] = []
    channel = Channel(loop, ours, lambda _: None, reasons.append)
    big = Event(1, "x", {"data": "a" * (15 * 1024 * 1024)})

    async def scenario() -> None:
        for _ in range(MAX_BUFFERED_BYTES // (15 * 1024 * 1024) + 1):
            channel.send(big)
        await loop.sleep(0)
        assert channel.closed

    with theirs:
        run(loop, scenario())
    assert "does not read" in reasons[0]


def test_a_slow_reader_gets_everything(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    frames: list[Frame] = []
    sender = Channel(loop, ours, lambda _: None, lambda _: None)
    receiver = Channel(loop, theirs, frames.append, lambda _: None)
    sent: list[Frame] = [Event(n, "x", {"data": "a" * (1024 * 1024)}) for n in range(8)]
    sent += [Data("s", n << 16, bytes(1 << 16)) for n in range(8)]
    drained: list[int] = []
    sender.on_drained = lambda: drained.append(sender.backlog)

    async def scenario() -> None:
        for frame in sent:
            sender.send(frame)
        assert not sender.drained
        while len(frames) < len(sent):
            await loop.sleep(0.001)

    run(loop, scenario())
    assert frames == sent
    assert sender.drained
    assert sender.backlog == 0
    assert drained == [0]
    sender.close()
    receiver.close()


@given(
    data=spoilt([encode(frame) for frame in (HELLO, Event(1, "task.exit", {"id": "x"}), Data("c//stdout", 0, b"x"))])
)
def test_rubbish_of_an_agent_ends_its_connection_and_nothing_else(data: bytes) -> None:
    """A guest that was broken into may send anything."""
    loop, errors = Loop(), list[str]()
    loop.on_error = lambda what, exc: errors.append(f"{what}: {exc!r}")
    ours, theirs = socket.socketpair()
    client = AgentClient(loop, ours)
    client.on_event = lambda seq, topic, body: None
    client.on_stream = lambda frame: None

    async def scenario() -> None:
        call = loop.spawn(client.call("task.state", {}, deadline=time.monotonic() + 5))
        theirs.setblocking(False)
        with suppress(BlockingIOError):
            theirs.sendall(encode(Reply(99, body={})) + data)
        theirs.close()
        with pytest.raises(Unavailable):
            await call

    try:
        run(loop, scenario())
        assert client.closed
        assert errors == []
    finally:
        client.close()
        loop.close()
