"""The order of events: never an end before its start, nothing twice."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message

from kuasar.api.gen.containerd.events import task_pb2 as events
from kuasar.gateway.announce import Announcer
from kuasar.gateway.events import EventPublisher


class Recorder(EventPublisher):
    """A publisher that is never entered: what is published stays in its hands."""

    def __init__(self) -> None:
        self.published: list[Message] = []

    def publish_task(self, namespace: str, event: Message) -> None:
        assert namespace == "k8s.io"
        self.published.append(event)


def exit_body(**changes: Any) -> dict[str, Any]:
    body = {"id": "e1", "container_id": "a", "exec_id": "", "pid": 7, "exit_status": 3, "exited_at": 1_500_000_000}
    return body | changes


def test_an_end_waits_for_its_start() -> None:
    recorder = Recorder()
    announcer = Announcer(recorder)
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


def test_a_failed_start_lets_the_end_go() -> None:
    recorder = Recorder()
    announcer = Announcer(recorder)
    with pytest.raises(ValueError, match="no such binary"), announcer.starting("k8s.io", "a", ""):
        announcer.from_worker("k8s.io", "task.exit", exit_body())
        raise ValueError("no such binary")
    assert len(recorder.published) == 1


def test_repeats_are_announced_once() -> None:
    recorder = Recorder()
    announcer = Announcer(recorder)
    for _ in range(3):
        announcer.from_worker("k8s.io", "task.exit", exit_body())
        announcer.from_worker("k8s.io", "task.oom", {"id": "e1", "container_id": "a"})
    assert [type(event).__name__ for event in recorder.published] == ["TaskExit", "TaskOOM"]
