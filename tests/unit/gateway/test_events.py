"""The event publisher against a real ttrpc server that stands in for containerd's event service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kuasar.api import anypb
from kuasar.api.gen.containerd.events.forward_pb2 import ForwardRequest
from kuasar.api.gen.containerd.events.task_pb2 import TaskCreate, TaskDelete, TaskExit, TaskIO, TaskOOM, TaskStart
from kuasar.api.gen.containerd.types.event_pb2 import Envelope
from kuasar.api.gen.ttrpc.ttrpc_pb2 import Request, Response
from kuasar.core import errors
from kuasar.gateway.events import MAX_REFUSALS, EventPublisher
from tests.unit.gateway.ttrpc_peer import TtrpcPeer, refusal


def run(test: Awaitable[None]) -> None:
    """Runs a test's coroutine, which must end within ten seconds."""

    async def bounded() -> None:
        async with asyncio.timeout(10):
            await test

    asyncio.run(bounded())


class Exchange:
    """Takes events; `behave` may refuse, hang or hang up instead, by the number of the call."""

    def __init__(self, path: Path, behave: Callable[[int], Awaitable[Response | None]] | None = None) -> None:
        self.peer = TtrpcPeer(path, self._forward)
        self.taken: list[Envelope] = []
        self.calls = 0
        self._behave = behave
        self._changed = asyncio.Event()

    async def _forward(self, request: Request) -> Response:
        assert (request.service, request.method) == ("containerd.services.events.ttrpc.v1.Events", "Forward")
        self.calls += 1
        self._changed.set()
        if self._behave and (response := await self._behave(self.calls)):
            return response
        self.taken.append(ForwardRequest.FromString(request.payload).envelope)
        self._changed.set()
        return Response()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def containers(self) -> list[str]:
        return [anypb.unpack(envelope.event, TaskStart).container_id for envelope in self.taken]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


def publish_starts(publisher: EventPublisher, numbers: range) -> list[str]:
    names = [f"c{number}" for number in numbers]
    for name in names:
        publisher.publish_task("k8s.io", TaskStart(container_id=name))
    return names


def test_an_event_arrives_whole(path: Path) -> None:
    async def test() -> None:
        exchange = Exchange(path)
        before = time.time_ns()
        async with exchange.peer, EventPublisher(str(path)) as publisher:
            event = TaskCreate(container_id="c", bundle="/b", pid=7, io=TaskIO(stdout="/out"))
            publisher.publish("k8s.io", "/tasks/create", event)
            event.Clear()  # what was published no longer belongs to the caller
            await exchange.until(lambda: len(exchange.taken) == 1)
        [envelope] = exchange.taken
        assert (envelope.namespace, envelope.topic) == ("k8s.io", "/tasks/create")
        assert envelope.event.type_url == "containerd.events.TaskCreate"
        assert anypb.unpack(envelope.event, TaskCreate).io.stdout == "/out"
        assert before <= envelope.timestamp.ToNanoseconds() <= time.time_ns()
        assert (publisher.delivered, publisher.dropped, publisher.pending) == (1, 0, 0)

    run(test())


def test_task_events_find_their_topics(path: Path) -> None:
    async def test() -> None:
        exchange = Exchange(path)
        async with exchange.peer:
            async with EventPublisher(str(path)) as publisher:
                for event in (TaskStart(), TaskExit(), TaskOOM(), TaskDelete()):
                    publisher.publish_task("moby", event)
            topics = [envelope.topic for envelope in exchange.taken]
            assert topics == ["/tasks/start", "/tasks/exit", "/tasks/oom", "/tasks/delete"]

    run(test())


def test_leaving_sends_what_is_queued_in_order(path: Path) -> None:
    async def test() -> None:
        exchange = Exchange(path)
        async with exchange.peer:
            async with EventPublisher(str(path)) as publisher:
                published = publish_starts(publisher, range(200))
                assert publisher.pending == 200
            assert exchange.containers() == published
            assert (publisher.delivered, exchange.peer.connections) == (200, 1)

    run(test())


def test_containerd_restarts_and_nothing_is_lost_or_reordered(path: Path) -> None:
    async def test() -> None:
        first = Exchange(path)
        async with EventPublisher(str(path), first_pause=0.01) as publisher:
            async with first.peer:
                published = publish_starts(publisher, range(5))
                await first.until(lambda: len(first.taken) == 5)
            published += publish_starts(publisher, range(5, 10))
            second = Exchange(path)
            async with second.peer:
                await second.until(lambda: len(second.taken) == 5)
        assert first.containers() + second.containers() == published
        assert (publisher.delivered, publisher.dropped) == (10, 0)

    run(test())


def test_an_event_is_repeated_after_the_connection_broke_under_it(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def test() -> None:
        async def hang_up_twice(call: int) -> Response | None:
            if call <= 2:
                exchange.peer.hang_up()
                await asyncio.Future[None]()
            return None

        exchange = Exchange(path, hang_up_twice)
        async with exchange.peer:
            async with EventPublisher(str(path), first_pause=0.001) as publisher:
                published = publish_starts(publisher, range(3))
                await exchange.until(lambda: len(exchange.taken) == 3)
            assert exchange.containers() == published
            assert exchange.calls == 5

    run(test())
    lines = capfd.readouterr().err.splitlines()
    assert len([line for line in lines if "containerd did not take an event, trying again" in line]) == 1
    assert len([line for line in lines if "containerd takes events again" in line and "attempts=3" in line]) == 1


def test_a_full_queue_loses_the_oldest_and_says_so(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def test() -> None:
        exchange = Exchange(path)
        async with exchange.peer:
            async with EventPublisher(str(path), capacity=3) as publisher:
                publish_starts(publisher, range(5))
                assert (publisher.dropped, publisher.pending) == (2, 3)
            assert exchange.containers() == ["c2", "c3", "c4"]

    run(test())
    dropped = [line for line in capfd.readouterr().err.splitlines() if '"event dropped"' in line]
    assert ["container=c0" in dropped[0], "container=c1" in dropped[1], len(dropped)] == [True, True, 2]
    assert "dropped=2" in dropped[1]


def test_an_event_that_is_always_refused_does_not_hold_up_the_others(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def test() -> None:
        async def refuse_first(call: int) -> Response | None:
            return refusal(3, "bad envelope") if call <= MAX_REFUSALS else None

        exchange = Exchange(path, refuse_first)
        async with exchange.peer:
            async with EventPublisher(str(path), first_pause=0.001) as publisher:
                publish_starts(publisher, range(2))
                await exchange.until(lambda: len(exchange.taken) == 1)
            assert exchange.containers() == ["c1"]
            assert (publisher.delivered, publisher.dropped) == (1, 1)

    run(test())
    assert "bad envelope" in capfd.readouterr().err


def test_a_refused_event_does_not_keep_the_others_from_leaving_at_the_end(path: Path) -> None:
    async def test() -> None:
        async def refuse_first(call: int) -> Response | None:
            return refusal(3, "bad envelope") if call == 1 else None

        exchange = Exchange(path, refuse_first)
        async with exchange.peer:
            async with EventPublisher(str(path), first_pause=3600) as publisher:
                publish_starts(publisher, range(3))
            assert exchange.containers() == ["c1", "c2"]
            assert (publisher.delivered, publisher.dropped) == (2, 1)

    run(test())


def test_an_event_too_large_for_the_protocol_is_dropped(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def test() -> None:
        exchange = Exchange(path)
        async with exchange.peer:
            async with EventPublisher(str(path)) as publisher:
                publisher.publish_task("k8s.io", TaskStart(container_id="x" * (5 << 20)))
                publish_starts(publisher, range(1))
            assert exchange.containers() == ["c0"]
            assert (publisher.delivered, publisher.dropped) == (1, 1)

    run(test())
    assert "is larger than 4194304" in capfd.readouterr().err


def test_closing_does_not_wait_for_a_containerd_that_is_away(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def test() -> None:
        async with EventPublisher(str(path), first_pause=3600, longest_pause=3600) as publisher:
            publish_starts(publisher, range(3))
        assert (publisher.delivered, publisher.dropped, publisher.pending) == (0, 3, 0)
        publisher.publish_task("k8s.io", TaskStart())
        assert publisher.dropped == 4
        await publisher.close()

    run(test())
    assert "lost=3" in capfd.readouterr().err


def test_closing_keeps_its_deadline_when_containerd_hangs(path: Path) -> None:
    async def test() -> None:
        async def hang(_: int) -> Response | None:
            return await asyncio.Future[Response]()

        exchange = Exchange(path, hang)
        async with exchange.peer:
            publisher = await EventPublisher(str(path)).__aenter__()
            publish_starts(publisher, range(2))
            await exchange.until(lambda: exchange.calls == 1)
            started = time.monotonic()
            await publisher.close(timeout=0.1)
            assert 0.1 <= time.monotonic() - started < 2
            assert publisher.dropped == 2

    run(test())


@pytest.mark.parametrize(
    ("namespace", "topic", "message"),
    [
        ("", "/tasks/start", "without a containerd namespace"),
        ("k8s.io", "tasks/start", "must look like"),
        ("k8s.io", "/", "must look like"),
        ("k8s.io", "", "must look like"),
    ],
)
def test_what_containerd_would_never_take_is_refused_at_once(
    path: Path, namespace: str, topic: str, message: str
) -> None:
    async def test() -> None:
        async with EventPublisher(str(path)) as publisher:
            with pytest.raises(errors.InvalidArgument, match=message):
                publisher.publish(namespace, topic, TaskStart())
            with pytest.raises(errors.InvalidArgument, match=r"containerd\.events\.TaskIO is no task event"):
                publisher.publish_task("k8s.io", TaskIO())
            assert publisher.pending == 0

    run(test())
