"""What no peer of ours would send, from raw sockets to the real router and the real dealer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import pytest
import zmq

from kuasar.bus.messages import (
    MAX_MESSAGE_BYTES,
    Cancel,
    Heartbeat,
    Hello,
    Message,
    Reply,
    Request,
    Welcome,
    decode,
    encode,
)
from tests.integration.bus.conftest import Stage
from tests.integration.bus.helpers import run, serving, soon, until

NONSENSE = [
    b"\x00",
    b"\xc1",
    b"not msgpack at all",
    msgpack.packb([1, 2, 3]),
    msgpack.packb({"v": 1}),
    msgpack.packb({"v": 2, "k": "hello"}),
    msgpack.packb({"v": 1, "k": "goodbye"}),
    msgpack.packb({"v": 1, "k": "heartbeat", "epoch": -1, "generation": 0, "acks": [], "event_ack": 0}),
    msgpack.packb({"v": 1, "k": "reply", "epoch": 1, "n": 1, "generation": 1}),
    b"\x91" * 100_000,
]


class Raw:
    """A raw socket with a bounded receive."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket = socket
        self.worker = b""

    def send(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def receive(self, seconds: float = 5.0) -> list[bytes]:
        assert self.socket.poll(int(seconds * 1000)), "nothing came"
        return self.socket.recv_multipart()

    def receive_message(self, kind: type[Any]) -> Any:
        """The next message of ``kind``; others are passed over."""
        while True:
            message = decode(self.receive()[-1])
            if isinstance(message, kind):
                return message


@contextmanager
def raw(kind: int, address: str, identity: bytes = b"") -> Iterator[Raw]:
    """A DEALER that connects or a ROUTER that binds."""
    with zmq.Context(1) as context, context.socket(kind) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        if kind == zmq.ROUTER:
            socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
            socket.bind(address)
        else:
            if identity:
                socket.setsockopt(zmq.IDENTITY, identity)
            socket.setsockopt(zmq.IMMEDIATE, 1)
            socket.setsockopt(zmq.PROBE_ROUTER, 1)
            socket.connect(address)
        yield Raw(socket)


def hello_of(name: str, pid: int, generation: int = 1, instance: str = "i") -> Hello:
    return Hello(name, "ns", "runc", "kuasar-runc", instance, generation, pid, "ready", [])


def test_nonsense_to_a_gateway_is_dropped_and_harms_nobody(stage: Stage) -> None:
    async def test() -> None:
        async with serving(stage.address) as router:
            stage.worker("good")
            await router.wait_link("good", soon())
            with raw(zmq.DEALER, stage.address, b"bad@i") as peer:
                welcome = await asyncio.to_thread(peer.receive_message, Welcome)
                assert welcome == Welcome(router.epoch, 0)
                for frame in NONSENSE:
                    peer.send(frame)
                peer.send(b"two", b"frames")
                peer.send(encode(hello_of("good", 1)))  # another one's name
                peer.send(encode(hello_of("bad", 1, instance="j")))
                peer.send(encode(Cancel(1, 1)))  # not for a gateway
                await until(lambda: router.counters["malformed"] == len(NONSENSE) + 4)
                peer.send(encode(Reply(router.epoch, 1, 1, {})))  # has never greeted
                await until(lambda: router.counters["stale"] == 1)
            assert router.link("bad") is None
            assert await router.call("good", "test.echo", {"n": 1}, deadline=soon()) == {"n": 1, "key": ""}

    run(test())


@pytest.mark.parametrize(
    "identity", [b"../../etc@i", b"a b@i", b"\xff\xfe@i", b"x" * 200 + b"@i", b"s1", b"s1@", b"@i", b"s1@i@i", b""]
)
def test_a_peer_whose_name_is_no_worker_is_not_talked_to(stage: Stage, identity: bytes) -> None:
    async def test() -> None:
        async with serving(stage.address) as router:
            with raw(zmq.DEALER, stage.address, identity) as peer:
                # libzmq connects when it is looked at.
                await until(lambda: peer.socket.poll(0) == 0 and router.counters["malformed"] == 1)
                peer.send(encode(hello_of("s1", 1)))
                await until(lambda: router.counters["malformed"] == 2)
                assert not router.links

    run(test())


def test_an_oversized_message_costs_its_sender_the_connection_and_nobody_else_anything(stage: Stage) -> None:
    async def test() -> None:
        async with serving(stage.address) as router:
            stage.worker("good")
            await router.wait_link("good", soon())
            with raw(zmq.DEALER, stage.address, b"big@i") as peer:
                await asyncio.to_thread(peer.receive_message, Welcome)
                peer.send(bytes(MAX_MESSAGE_BYTES + 1))
                # It is disconnected and comes back, as the second welcome shows.
                await asyncio.to_thread(peer.receive_message, Welcome)
            assert router.counters["malformed"] == 0
            assert await router.call("good", "test.echo", {"n": 1}, deadline=soon()) == {"n": 1, "key": ""}

    run(test())


def test_answers_that_nobody_waits_for_are_counted_and_dropped(stage: Stage) -> None:
    async def test() -> None:
        async with serving(stage.address) as router:
            with raw(zmq.DEALER, stage.address, b"s1@i") as peer:
                await asyncio.to_thread(peer.receive_message, Welcome)
                peer.send(encode(hello_of("s1", 1, generation=3)))
                call = asyncio.ensure_future(router.call("s1", "test.x", {}, key="k", deadline=soon()))
                request = await asyncio.to_thread(peer.receive_message, Request)
                assert (request.op, request.key, request.generation) == ("test.x", "k", 3)
                peer.send(encode(Reply(router.epoch - 1, request.n, 3, {"answer": "of another gateway's request"})))
                peer.send(encode(Reply(router.epoch, request.n + 1, 3, {"answer": "to what was never asked"})))
                peer.send(encode(Reply(router.epoch, request.n, 2, {"answer": "of an outdated worker"})))
                peer.send(encode(Reply(router.epoch, request.n, 4, {"answer": "of one that has not greeted"})))
                peer.send(encode(Reply(router.epoch, request.n, 3, {"answer": "right"})))
                peer.send(encode(Reply(router.epoch, request.n, 3, {"answer": "again"})))
                assert await call == {"answer": "right"}
                await until(lambda: router.counters["unasked"] == 3)
                assert router.counters["stale"] == 2
                # The key is acknowledged within a second, without another request.
                started = time.monotonic()
                while (await asyncio.to_thread(peer.receive_message, Heartbeat)).acks != ["k"]:
                    pass
                assert time.monotonic() - started < 1.5

    run(test())


def test_a_connection_that_broke_is_greeted_again_and_gets_what_was_unanswered(stage: Stage) -> None:
    """The worker lives, but the first request has gone to a connection that is no more."""

    async def test() -> None:
        async with serving(stage.address) as router:
            with raw(zmq.DEALER, stage.address, b"s1@i") as peer:
                await asyncio.to_thread(peer.receive_message, Welcome)
                peer.send(encode(hello_of("s1", 1)))
                await router.wait_link("s1", soon())
                call = asyncio.ensure_future(router.call("s1", "test.x", {}, key="k", deadline=soon()))
                first = await asyncio.to_thread(peer.receive_message, Request)
            with raw(zmq.DEALER, stage.address, b"s1@i") as peer:
                assert await asyncio.to_thread(peer.receive_message, Welcome) == Welcome(router.epoch, 1)
                peer.send(encode(hello_of("s1", 1)))
                second = await asyncio.to_thread(peer.receive_message, Request)
                assert (second.epoch, second.n, second.key) == (first.epoch, first.n, "k")
                peer.send(encode(Reply(router.epoch, second.n, 1, {"answer": 1})))
                assert await call == {"answer": 1}
                assert router.counters["resent"] == 1

    run(test())


def test_a_worker_that_is_dead_when_its_greeting_is_read_is_known_as_dead(stage: Stage) -> None:
    async def test() -> None:
        async with serving(stage.address) as router:
            with raw(zmq.DEALER, stage.address, b"s1@i") as peer:
                await asyncio.to_thread(peer.receive_message, Welcome)
                peer.send(encode(hello_of("s1", (1 << 22) - 1)))  # the highest pid there may be: nobody's
                await until(lambda: router.counters["deaths"] == 1)
                link = router.link("s1")
                assert link is not None
                assert link.state == "dead"

    run(test())


def ask(peer: Raw, message: Message) -> None:
    peer.send(peer.worker, encode(message))


@contextmanager
def gateway(stage: Stage, epoch: int = 1000) -> Iterator[Raw]:
    """A raw ROUTER that a real worker has greeted."""
    with raw(zmq.ROUTER, stage.address) as peer:
        peer.worker, probe = peer.receive(15.0)
        assert (peer.worker.startswith(b"s1@"), probe) == (True, b"")
        ask(peer, Welcome(epoch, 0))
        assert peer.receive_message(Hello).sandbox == "s1"
        yield peer


def facts_of(peer: Raw, epoch: int = 1000, n: int = 999) -> dict[str, Any]:
    ask(peer, Request(epoch, n, "", "test.facts", {}, None, 1, []))
    while (reply := peer.receive_message(Reply)).n != n:
        pass
    assert reply.body is not None
    facts: dict[str, Any] = reply.body
    return facts


def test_nonsense_to_a_worker_is_dropped(stage: Stage) -> None:
    stage.worker("s1")
    with gateway(stage) as peer:
        for frame in NONSENSE:
            peer.send(peer.worker, frame)
        peer.send(peer.worker, b"two", b"frames")
        peer.send(peer.worker, b"")
        ask(peer, hello_of("s1", 1))
        assert facts_of(peer)["malformed"] == len(NONSENSE) + 3


def test_a_duplicate_of_a_change_is_answered_twice_and_done_once(stage: Stage) -> None:
    stage.worker("s1")
    with gateway(stage) as peer:
        request = Request(1000, 1, "k", "test.count", {"seconds": 0.05}, None, 1, [])
        for _ in range(3):
            ask(peer, request)
        replies = [peer.receive_message(Reply) for _ in range(3)]
        assert replies == [Reply(1000, 1, 1, {"key": "k"})] * 3
        assert stage.lines("count") == ["k"]
        ask(peer, Heartbeat(1000, 1, ["k"], 0))
        ask(peer, request)
        assert peer.receive_message(Reply) == replies[0]
        assert stage.lines("count") == ["k", "k"]


def test_a_duplicate_of_a_read_under_way_is_answered_once(stage: Stage) -> None:
    stage.worker("s1")
    with gateway(stage) as peer:
        request = Request(1000, 1, "", "test.count", {"seconds": 0.05}, None, 1, [])
        ask(peer, request)
        ask(peer, request)
        assert peer.receive_message(Reply).n == 1
        assert stage.lines("count") == [""]
        assert facts_of(peer)["requests"] == 2


def test_requests_of_another_gateway_and_late_ones_are_not_begun(stage: Stage) -> None:
    stage.worker("s1")
    with gateway(stage) as peer:
        ask(peer, Request(999, 1, "k1", "test.count", {}, None, 1, []))
        ask(peer, Request(1000, 2, "k2", "test.count", {}, time.monotonic() - 1, 1, []))
        reply = peer.receive_message(Reply)
        assert (reply.n, reply.error["kind"]) == (2, "deadline_exceeded")
        facts = facts_of(peer)
        assert (facts["stale"], facts["requests"]) == (1, 1)
        assert stage.lines("count") == []


@pytest.mark.parametrize(
    "newer", [Welcome(1000, 2), Heartbeat(1000, 2, [], 0), Request(1000, 1, "", "x", {}, None, 2, [])]
)
def test_any_sign_of_a_newer_worker_makes_this_one_leave(stage: Stage, newer: Message) -> None:
    worker = stage.worker("s1")
    with gateway(stage) as peer:
        ask(peer, newer)
        assert worker.wait(10) == 3


def test_an_acknowledgement_of_a_predecessors_events_takes_none_away(stage: Stage) -> None:
    stage.worker("s1", 2)
    with gateway(stage) as peer:
        ask(peer, Request(1000, 1, "k", "test.publish", {"first": 1, "count": 2}, None, 2, []))
        ask(peer, Heartbeat(1000, 1, [], 57))
        assert facts_of(peer)["acked_events"] == []
        ask(peer, Heartbeat(1000, 2, [], 1))
        assert facts_of(peer, n=1000)["acked_events"] == [1]


def test_a_worker_keeps_answers_for_a_gateway_that_does_not_read(stage: Stage) -> None:
    """More than the queues hold: they come when the gateway reads again, in order."""
    stage.worker("s1")
    with raw(zmq.ROUTER, stage.address) as peer:
        peer.socket.setsockopt(zmq.RCVHWM, 10)
        peer.worker = peer.receive(15.0)[0]
        ask(peer, Welcome(1000, 0))
        for n in range(1, 501):
            ask(peer, Request(1000, n, "", "test.large", {"size": 20_000}, None, 1, []))
        numbers = [peer.receive_message(Reply).n for _ in range(500)]
        assert numbers == list(range(1, 501))
