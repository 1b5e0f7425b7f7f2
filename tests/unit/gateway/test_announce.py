"""The order of events: never an end before its start, nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message

from kuasar.api.gen.containerd.events import task_pb2 as events
from kuasar.gateway.announce import Announcer
from kuasar.gateway.events import EventPublisher


class Recorder(EventPublisher):
    """A publisher that is never entered: what is published stays in its hands, until `deliver`."""

    def __init__(self) -> None:
        self.published: list[Message] = []
        self.waiting: list[asyncio.Future[None]] = []

    def publish_task(self, namespace: str, event: Message) -> asyncio.Future[None]:
        assert namespace == "k8s.io"
        self.published.append(event)
        self.waiting.append(asyncio.get_running_loop().create_future())
        return self.waiting[-1]

    def deliver(self) -> None:
        for done in self.waiting:
            done.set_result(None)
        self.waiting.clear()


def in_a_loop(test: Callable[[Announcer, Recorder], None]) -> Callable[[], None]:
    """Runs a test that needs a loop, but never waits."""

    async def run() -> None:
        recorder = Recorder()
        test(Announcer(recorder), recorder)

    return lambda: asyncio.run(run())


def exit_body(**changes: Any) -> dict[str, Any]:
    body = {"id": "e1", "container_id": "a", "exec_id": "", "pid": 7, "exit_status": 3, "exited_at": 1_500_000_000}
    return body | changes


@in_a_loop
def test_an_end_waits_for_its_start(announcer: Announcer, recorder: Recorder) -> None:
    with announcer.starting("k8s.io", "a", ""):
        announcer.from_worker("k8s.io", "task.exit", exit_body())
        announcer.from_worker("k8s.io", "task.exit", exit_body(id="e2", exec_id="x"))
        announcer.announce("k8s.io", events.TaskStart(container_id="a", pid=7))
    assert [type(event).__name__ for event in recorder.published] == ["TaskExit", "TaskStart", "TaskExit"]
    other, _, own = recorder.published
    assert isinstance(other, events.TaskExit)
    assert isinstance(own, events.TaskExit)
    assert (other.id, own.id, own.exit_status) == ("x", "a", 3)
    assert (own.exited_at.seconds, own.exited_at.nanos) == (1, 500_000_000)


@in_a_loop
def test_a_failed_start_lets_the_end_go(announcer: Announcer, recorder: Recorder) -> None:
    with pytest.raises(ValueError, match="no such binary"), announcer.starting("k8s.io", "a", ""):
        announcer.from_worker("k8s.io", "task.exit", exit_body())
        raise ValueError("no such binary")
    assert len(recorder.published) == 1


@in_a_loop
def test_repeats_are_announced_once(announcer: Announcer, recorder: Recorder) -> None:
    for _ in range(3):
        announcer.from_worker("k8s.io", "task.exit", exit_body())
        announcer.from_worker("k8s.io", "task.oom", {"id": "e1", "container_id": "a"})
    assert [type(event).__name__ for event in recorder.published] == ["TaskExit", "TaskOOM"]


def test_what_was_told_is_dealt_with_when_containerd_has_it() -> None:
    """Else the worker would forget an end that nobody knows, should the gateway die now."""

    async def scenario() -> None:
        recorder = Recorder()
        announcer = Announcer(recorder)
        told = announcer.from_worker("k8s.io", "task.exit", exit_body())
        again = announcer.from_worker("k8s.io", "task.exit", exit_body())  # by the worker's successor
        with announcer.starting("k8s.io", "a", "x"):
            held = announcer.from_worker("k8s.io", "task.exit", exit_body(id="e2", exec_id="x"))
        assert told is not None
        assert again is not None
        assert held is not None
        tasks = [asyncio.ensure_future(awaitable) for awaitable in (told, again, held)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)
        recorder.deliver()
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks)
        assert (
            announcer.from_worker("k8s.io", "sandbox.exit", {"id": "s", "exit_status": 0, "reason": "stopped"}) is None
        )

    asyncio.run(scenario())
