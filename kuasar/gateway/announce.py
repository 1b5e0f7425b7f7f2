"""What is announced to containerd, in an order that makes sense: never the end of a process before its start.

Events of workers may arrive before the answer to the request that caused them (a process that ends at once); those are
held back until the answer has been passed on. An event that a replaced worker sends again is announced once. What a
worker has told is acknowledged only when containerd has it: until then the worker keeps it, in case we die.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Iterator
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
        self._starting: dict[tuple[str, str, str], list[tuple[Message, asyncio.Future[None]]]] = {}
        self._seen: OrderedDict[str, Awaitable[None] | None] = OrderedDict()

    def announce(self, namespace: str, event: Message) -> Awaitable[None]:
        """Pass an event of our own making on; the result is done when containerd has it, or never will."""
        return self._publisher.publish_task(namespace, event)

    @contextmanager
    def starting(self, namespace: str, container: str, exec_id: str) -> Iterator[None]:
        """While entered, the end of this process is held back."""
        key = (namespace, container, exec_id)
        held = self._starting.setdefault(key, [])
        try:
            yield
        finally:
            self._starting.pop(key, None)
            for event, done in held:
                _follow(self.announce(namespace, event), done)

    def has_seen(self, topic: str, body: dict[str, Any]) -> bool:
        """Whether :meth:`from_worker` was told of this already."""
        return f"{topic} {body['id']}" in self._seen

    def from_worker(self, namespace: str, topic: str, body: dict[str, Any]) -> Awaitable[None] | None:
        """Announce what a worker or its agent has seen. The result, if any, is done when it has been dealt with."""
        identity = f"{topic} {body['id']}"
        if identity in self._seen:
            return self._seen[identity]
        handling = self._announce(namespace, topic, body)
        self._seen[identity] = handling
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return handling

    def _announce(self, namespace: str, topic: str, body: dict[str, Any]) -> Awaitable[None] | None:
        if topic == "task.exit":
            return self._exit(namespace, body)
        if topic == "task.oom":
            return self.announce(namespace, events.TaskOOM(container_id=body["container_id"]))
        if topic == "sandbox.exit":
            log.info("sandbox ended", sandbox=body["id"], status=body["exit_status"], reason=body["reason"])
        else:
            log.warning("unknown event topic", topic=topic)
        return None

    def _exit(self, namespace: str, body: dict[str, Any]) -> Awaitable[None]:
        container, exec_id = body["container_id"], body["exec_id"]
        event = events.TaskExit(
            container_id=container,
            id=exec_id or container,
            pid=body["pid"],
            exit_status=body["exit_status"],
            exited_at=timestamp(body["exited_at"]),
        )
        held = self._starting.get((namespace, container, exec_id))
        if held is None:
            return self.announce(namespace, event)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        held.append((event, done))
        return done


def _follow(first: Awaitable[None], then: asyncio.Future[None]) -> None:
    """``then`` is done when ``first`` is."""
    asyncio.ensure_future(first).add_done_callback(lambda _: _set(then))


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
