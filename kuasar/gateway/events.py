"""Tells containerd what happened to tasks: Events/Forward on its ttrpc socket, in the order of publishing.

One publisher per gateway, living as long as its loop. `publish` only queues; one task sends, one event at a time,
and tries again with growing pauses while containerd is away (it restarts, or starts after us). The queue is
bounded: when it is full the oldest event goes, because the newest tell how things are now. Whatever is dropped is
counted and logged. An event whose answer got lost is sent again: containerd may see it twice, never out of order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from kuasar.api import anypb
from kuasar.api.gen.containerd.events import task_pb2 as events
from kuasar.api.gen.containerd.events.forward_pb2 import DESCRIPTOR, ForwardRequest
from kuasar.api.gen.containerd.types.event_pb2 import Envelope
from kuasar.core import errors, log
from kuasar.gateway.ttrpc import CallRefused, TtrpcClient

SERVICE = DESCRIPTOR.services_by_name["Events"].full_name

TASK_TOPICS: dict[type[Message], str] = {
    events.TaskCreate: "/tasks/create",
    events.TaskStart: "/tasks/start",
    events.TaskExit: "/tasks/exit",
    events.TaskOOM: "/tasks/oom",
    events.TaskDelete: "/tasks/delete",
    events.TaskExecAdded: "/tasks/exec-added",
    events.TaskExecStarted: "/tasks/exec-started",
    events.TaskPaused: "/tasks/paused",
    events.TaskResumed: "/tasks/resumed",
    events.TaskCheckpointed: "/tasks/checkpointed",
}

CAPACITY = 4096
CALL_TIMEOUT = 5.0
# One event that containerd keeps refusing must not hold up all that follow.
MAX_REFUSALS = 5


@dataclass(frozen=True, slots=True)
class _Queued:
    """An event as it will be sent, and what the log calls it."""

    request: ForwardRequest
    topic: str
    namespace: str
    container: str
    done: asyncio.Future[None]
    """Set when containerd has it, or never will."""


class EventPublisher:
    """Forwards events to one containerd. Enter it in the loop that publishes; leaving sends what is queued.

    `delivered` and `dropped` count events since the start, `pending` those queued or under way.
    """

    def __init__(
        self, address: str, *, capacity: int = CAPACITY, first_pause: float = 0.05, longest_pause: float = 5.0
    ) -> None:
        """`address` is the path of containerd's ttrpc socket, usually that of its gRPC socket plus ".ttrpc"."""
        self.delivered = 0
        self.dropped = 0
        self._client = TtrpcClient(address)
        self._address = address
        self._capacity = capacity
        self._pauses = (first_pause, longest_pause)
        self._queue: deque[_Queued] = deque()
        self._current: _Queued | None = None
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None

    async def __aenter__(self) -> EventPublisher:
        self._sender = asyncio.create_task(self._send_all(), name="event publisher")
        self._sender.add_done_callback(_report_crash)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def pending(self) -> int:
        """How many events containerd has not taken yet."""
        return len(self._queue) + (self._current is not None)

    def publish(self, namespace: str, topic: str, event: Message) -> asyncio.Future[None]:
        """Queues `event`, as it is now and with the present time, and returns at once. The result is done when
        containerd has the event, or has been given up on it; it never is for what waits when the publisher is closed.

        InvalidArgument if containerd could never take it. After `close` the event is dropped and counted.
        """
        if not namespace:
            raise errors.InvalidArgument("event without a containerd namespace", field="namespace")
        if not topic.startswith("/") or topic == "/":
            raise errors.InvalidArgument(f"event topic {topic!r} must look like '/tasks/exit'", field="topic")
        now = Timestamp()
        now.GetCurrentTime()
        envelope = Envelope(timestamp=now, namespace=namespace, topic=topic, event=anypb.pack(event))
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        container = getattr(event, "container_id", "")
        queued = _Queued(ForwardRequest(envelope=envelope), topic, namespace, container, done)
        if self._closing.is_set():
            self._drop(queued, "the publisher is closed")
            return done
        if len(self._queue) >= self._capacity:
            self._drop(self._queue.popleft(), f"the queue is full, {self._capacity} events wait for containerd")
        self._queue.append(queued)
        self._wake.set()
        return done

    def publish_task(self, namespace: str, event: Message) -> asyncio.Future[None]:
        """Like `publish`, under the topic that belongs to this kind of task event."""
        topic = TASK_TOPICS.get(type(event))
        if topic is None:
            raise errors.InvalidArgument(f"{event.DESCRIPTOR.full_name} is no task event", field="event")
        return self.publish(namespace, topic, event)

    async def close(self, timeout: float = 2.0) -> None:  # noqa: ASYNC109 - the budget of the whole ending
        """Sends what is queued for at most `timeout` seconds, but waits for no containerd that is away.

        What could not be sent is counted as dropped. Harmless to repeat.
        """
        self._closing.set()
        self._wake.set()
        if self._sender:
            await asyncio.wait([self._sender], timeout=timeout)
            self._sender.cancel()
            await asyncio.wait([self._sender])
        await self._client.close()
        if lost := self.pending:
            self.dropped += lost
            self._queue.clear()
            self._current = None
            log.warning("events not delivered at the end", lost=lost, containerd=self._address)

    async def _send_all(self) -> None:
        while True:
            if not self._queue:
                if self._closing.is_set():
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            self._current = self._queue.popleft()
            if not await self._deliver(self._current):
                return
            self._current = None

    async def _deliver(self, event: _Queued) -> bool:
        """Sends one event until containerd took or refused it; False when closing and containerd is away."""
        pause, longest = self._pauses
        failures = refusals = 0
        while True:
            try:
                await self._client.call(SERVICE, "Forward", event.request, Empty, timeout=CALL_TIMEOUT)
                break
            except errors.ResourceExhausted as error:
                self._drop(event, str(error))
                return True
            except CallRefused as error:
                refusals += 1
                reason = str(error)
            except errors.KuasarError as error:
                reason = str(error)
            # A refused event is not tried again at the end, and does not keep the others from leaving.
            if refusals >= (1 if self._closing.is_set() else MAX_REFUSALS):
                self._drop(event, reason)
                return True
            if self._closing.is_set():
                return False
            failures += 1
            if failures == 1:
                log.warning("containerd did not take an event, trying again", topic=event.topic, reason=reason)
            await self._pause(pause)
            pause = min(pause * 2, longest)
        self.delivered += 1
        _settle(event)
        if failures:
            log.info("containerd takes events again", attempts=failures + 1, waiting=len(self._queue))
        return True

    async def _pause(self, seconds: float) -> None:
        """Waits, but not once we are closing: the last attempt is made at once."""
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            return

    def _drop(self, event: _Queued, reason: str) -> None:
        self.dropped += 1
        _settle(event)
        log.warning(
            "event dropped",
            topic=event.topic,
            namespace=event.namespace,
            container=event.container[:80],
            reason=reason,
            dropped=self.dropped,
        )


def _settle(event: _Queued) -> None:
    if not event.done.done():
        event.done.set_result(None)


def _report_crash(sender: asyncio.Task[None]) -> None:
    if not sender.cancelled() and (error := sender.exception()):
        log.error("the event publisher died, no more events reach containerd", error=repr(error))
