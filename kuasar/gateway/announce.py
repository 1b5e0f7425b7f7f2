"""What is announced to containerd, in an order that makes sense: never the end of a process before its start.

Events of workers may arrive before the answer to the request that caused them (a process that ends at once); those are
held back until the answer has been passed on. An event that a replaced worker sends again is announced once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from google.protobuf.message import Message

from kuasar.api.gen.containerd.events import task_pb2 as events
from kuasar.core import log
from kuasar.gateway.events import EventPublisher
from kuasar.gateway.times import timestamp

_REMEMBERED = 8192


class Announcer:
    """One per gateway, in front of the publisher."""

    def __init__(self, publisher: EventPublisher) -> None:
        self._publisher = publisher
        self._starting: dict[tuple[str, str, str], list[Message]] = {}
        self._seen: OrderedDict[str, None] = OrderedDict()

    def announce(self, namespace: str, event: Message) -> None:
        """Pass an event of our own making on."""
        self._publisher.publish_task(namespace, event)

    @contextmanager
    def starting(self, namespace: str, container: str, exec_id: str) -> Iterator[None]:
        """While entered, the end of this process is held back."""
        key = (namespace, container, exec_id)
        held = self._starting.setdefault(key, [])
        try:
            yield
        finally:
            self._starting.pop(key, None)
            for event in held:
                self.announce(namespace, event)

    def from_worker(self, namespace: str, topic: str, body: dict[str, Any]) -> None:
        """Announce what a worker or its agent has seen."""
        if self._is_repeat(f"{topic} {body['id']}"):
            return
        if topic == "task.exit":
            self._exit(namespace, body)
        elif topic == "task.oom":
            self.announce(namespace, events.TaskOOM(container_id=body["container_id"]))
        elif topic == "sandbox.exit":
            log.info("sandbox ended", sandbox=body["id"], status=body["exit_status"], reason=body["reason"])
        else:
            log.warning("unknown event topic", topic=topic)

    def _exit(self, namespace: str, body: dict[str, Any]) -> None:
        container, exec_id = body["container_id"], body["exec_id"]
        event = events.TaskExit(
            container_id=container,
            id=exec_id or container,
            pid=body["pid"],
            exit_status=body["exit_status"],
            exited_at=timestamp(body["exited_at"]),
        )
        held = self._starting.get((namespace, container, exec_id))
        if held is not None:
            held.append(event)
            return
        self.announce(namespace, event)

    def _is_repeat(self, identity: str) -> bool:
        if identity in self._seen:
            return True
        self._seen[identity] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return False
