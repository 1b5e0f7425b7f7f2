"""The gateway's side of the bus: requests to workers, their answers and events (docs/bus.md).

One per gateway, on its asyncio loop. Keeps every request until it is answered and sends it again whenever a worker
greets over a new connection, so that a worker's death costs its callers only time. Owns nothing durable: a new gateway
learns everything from the workers' greetings. Death is noticed by pidfd; what follows is decided by ``on_death``.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from kuasar.bus.endpoint import RouterEndpoint, Sent
from kuasar.bus.link import EventLedger, Link, Pending, Traced
from kuasar.bus.messages import (
    Cancel,
    Event,
    Heartbeat,
    Hello,
    MalformedMessage,
    Message,
    Reply,
    Request,
    Welcome,
    decode,
    encode,
    routing_id,
    sandbox_of,
)
from kuasar.core import log
from kuasar.core.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    from_wire,
)
from kuasar.core.ids import require_id
from kuasar.core.process import start_time

HEARTBEAT_SECONDS = 5.0
SILENCE_SECONDS = 15.0
MAX_REQUESTS_PER_SANDBOX = 1024
_TICK_SECONDS = 0.5
_FULL_SECONDS = 0.02
_EVENT_ACK_SECONDS = 0.01
"""How long an event that was dealt with waits for others: if we die before its worker knows, it is dealt with twice."""

_COUNTERS = (
    "requests",  # calls made
    "resent",  # requests sent again to a greeting worker
    "replies",  # answers passed on
    "unasked",  # answers that nobody waits for: repeats, late ones, of another gateway's requests
    "events",  # passed on
    "event_repeats",  # seen before
    "malformed",  # messages dropped because they were none
    "stale",  # messages of outdated or unknown workers
    "unroutable",  # sends to a worker that is not connected
    "full",  # sends to a worker that does not read
    "deaths",  # workers that ended
)


class BusRouter:
    """Set the callbacks before :meth:`start`; all are called from the loop.

    ``on_hello(hello)``: a worker has greeted, before unanswered requests are sent to it.
    ``on_event(sandbox, topic, body)``: something happened there. If it gives an awaitable, the event is acknowledged
    when that is done, else at once; an error is logged and counts as done.
    ``on_death(sandbox)``: its worker has ended; is awaited beside everything else.
    """

    def __init__(self, address: str, max_requests_per_sandbox: int = MAX_REQUESTS_PER_SANDBOX) -> None:
        self.epoch = time.time_ns()
        self.on_hello: Callable[[Hello], None] = lambda hello: None
        self.on_event: Callable[[str, str, dict[str, Any]], Awaitable[None] | None] = lambda sandbox, topic, body: None
        self.on_death: Callable[[str], Coroutine[Any, Any, None]] | None = None
        self.counters = dict.fromkeys(_COUNTERS, 0)
        self._endpoint = RouterEndpoint(address, self._receive_frames)
        self._max_requests = max_requests_per_sandbox
        self._links: dict[str, Link] = {}
        self._full: set[Link] = set()
        self._acknowledging: set[Link] = set()
        self._retrying = False
        self._numbers = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving = False

    async def start(self, listener: int = -1) -> None:
        """Bind, or take over ``listener`` (see :meth:`RouterEndpoint.open`), and serve.

        Raises :class:`Unavailable` when another gateway serves the address, and :class:`PermissionDenied` when its
        directory is not ours alone.
        """
        self._loop = asyncio.get_running_loop()
        self._endpoint.open(listener)
        self._serving = True
        self._spawn(self._beat())

    async def close(self) -> None:
        """Wake everyone who waits with :class:`Unavailable`, and end. Harmless when not started."""
        self._serving = False
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for link in self._links.values():
            link.fail_all(Unavailable, "the gateway is stopping")
            self._unwatch(link)
        self._endpoint.close()

    # -- calling -------------------------------------------------------------------------------------------------------

    async def call(
        self,
        sandbox: str,
        op: str,
        body: dict[str, Any],
        *,
        key: str = "",
        deadline: float | None = None,
        acknowledge: bool = True,
        trace: Traced | None = None,
    ) -> dict[str, Any]:
        """Have the worker of ``sandbox`` do ``op``; ``deadline`` is on CLOCK_MONOTONIC, None waits for ever.

        A ``key`` makes it safe to change things: the worker does it once, however often it is sent. Without one the
        request may be carried out more than once, and is cancelled when the caller goes away. Without ``acknowledge``
        the worker keeps the answer until :meth:`acknowledge` is called. ``trace`` gets what the worker records.

        Raises what the worker answers; :class:`DeadlineExceeded` when it does not answer in time (what it does has an
        unknown effect then); :class:`Unavailable` when no worker is there by the deadline, or none is expected;
        :class:`ResourceExhausted` when too much is under way; :class:`InvalidArgument` for a body that the bus cannot
        carry.
        """
        link = self._links.get(sandbox)
        if link is None:
            link = self._links[sandbox] = Link(require_id(sandbox, "sandbox"))
        self._refuse(link, op, deadline)
        self._numbers += 1
        self.counters["requests"] += 1
        pending = Pending(self._numbers, key, op, body, deadline, self._loop.create_future(), trace=trace)
        timer = None if deadline is None else self._loop.call_at(deadline, self._expire, link, pending)
        link.pending[pending.n] = pending
        try:
            if link.alive and link not in self._full:
                self._send_request(link, pending)
            return await pending.future
        finally:
            if timer is not None:
                timer.cancel()
            self._settle(link, pending, acknowledge)

    def _refuse(self, link: Link, op: str, deadline: float | None) -> None:
        if not self._serving:
            raise Unavailable(f"{op}: the gateway is stopping")
        if link.suspended and deadline is not None:
            raise Unavailable(f"{op}: sandbox {link.sandbox}: {link.suspended}")
        if len(link.pending) >= self._max_requests:
            raise ResourceExhausted(f"{op}: {self._max_requests} requests are under way for sandbox {link.sandbox}")
        if deadline is not None and deadline <= time.monotonic():
            raise DeadlineExceeded(f"{op}: the deadline was over before the request could be sent")

    def _expire(self, link: Link, pending: Pending) -> None:
        if pending.future.done():
            return
        op = pending.op
        if link.alive and pending.connection == link.connection:
            error: Exception = DeadlineExceeded(f"{op}: sandbox {link.sandbox} did not answer in time")
        else:
            error = Unavailable(f"{op}: the worker of sandbox {link.sandbox} was not there in time")
        pending.future.set_exception(error)

    def acknowledge(self, sandbox: str, key: str) -> None:
        """Nobody will ask for the answer to ``key`` again. Harmless when it is unknown."""
        link = self._links.get(sandbox)
        if link is not None:
            link.acks.append(key)

    def _settle(self, link: Link, pending: Pending, acknowledge: bool) -> None:
        """The call is over. Keys are acknowledged only when the answer has arrived: who gave up may ask again."""
        link.pending.pop(pending.n, None)
        if pending.answered:
            if pending.key and acknowledge:
                link.acks.append(pending.key)
        elif not pending.key and pending.connection and link.alive:
            self._send(link.identity, Cancel(self.epoch, pending.n))
        if link.hello is None and not link.pending and not link.waiters and self._links.get(link.sandbox) is link:
            del self._links[link.sandbox]

    def suspend(self, sandbox: str, why: str) -> None:
        """Nobody is expected for now: calls with a deadline fail with ``why`` until a worker greets, waits go on.

        Harmless when a worker is there.
        """
        link = self._links.get(sandbox)
        if link is None or link.alive:
            return
        link.suspended = why
        link.fail_all(Unavailable, why, waits=False)

    def forget(self, sandbox: str) -> None:
        """The sandbox is gone: whoever still waits gets :class:`NotFound`. Harmless when unknown."""
        link = self._links.pop(sandbox, None)
        if link is not None:
            link.fail_all(NotFound, "it has been removed")
            link.alive = False
            self._full.discard(link)
            self._unwatch(link)

    def link(self, sandbox: str) -> Link | None:
        """What is known of a sandbox's worker."""
        return self._links.get(sandbox)

    @property
    def links(self) -> list[Link]:
        """All of them, for metrics."""
        return list(self._links.values())

    async def wait_link(self, sandbox: str, deadline: float | None = None) -> Link:
        """The link once its worker has greeted and lives. Raises :class:`Unavailable` at ``deadline``."""
        if not self._serving:
            raise Unavailable(f"sandbox {sandbox}: the gateway is stopping")
        link = self._links.get(sandbox)
        if link is None:
            link = self._links[sandbox] = Link(require_id(sandbox, "sandbox"))
        while not link.alive:
            waiter = self._loop.create_future()
            link.waiters.append(waiter)
            try:
                async with asyncio.timeout_at(deadline):
                    await waiter
            except TimeoutError:
                raise Unavailable(f"the worker of sandbox {sandbox} was not there in time") from None
            finally:
                if waiter in link.waiters:
                    link.waiters.remove(waiter)
        return link

    # -- receiving -----------------------------------------------------------------------------------------------------

    def _receive_frames(self, identity: bytes, frames: list[bytes]) -> None:
        try:
            sandbox = sandbox_of(identity)
            if len(frames) != 1:
                raise MalformedMessage(f"{len(frames)} frames, one is a message")
            if frames[0] == b"":
                self._welcome(identity, sandbox)
            else:
                self._receive(identity, sandbox, decode(frames[0]))
        except MalformedMessage as exc:
            self.counters["malformed"] += 1
            log.warning("malformed message dropped", peer=repr(identity)[:100], error=exc)

    def _welcome(self, identity: bytes, sandbox: str) -> None:
        """A new connection. Only a worker that lives makes the one at the other end outdated: a dead one's sandbox may
        have been removed and made anew, with generations that begin again."""
        link = self._links.get(sandbox)
        self._send(identity, Welcome(self.epoch, link.generation if link is not None and link.alive else 0))

    def _receive(self, identity: bytes, sandbox: str, message: Message) -> None:
        if isinstance(message, Hello):
            if identity != f"{message.sandbox}@{message.instance}".encode(errors="replace"):
                raise MalformedMessage(f"hello of {message.sandbox!r:.100}, instance {message.instance!r:.100}")
            self._greeted(message)
            return
        if not isinstance(message, Reply | Event | Heartbeat):
            raise MalformedMessage(f"{message.kind}: not for a gateway")
        link = self._links.get(sandbox)
        if link is None or identity != link.identity or message.generation != link.generation:
            self.counters["stale"] += 1
            return
        link.heard, link.silent = time.monotonic(), False
        if isinstance(message, Reply):
            self._replied(link, message)
        elif isinstance(message, Event):
            self._told(link, message)
        if link in self._full:
            self._send_unsent(link)

    def _replied(self, link: Link, reply: Reply) -> None:
        pending = link.pending.get(reply.n) if reply.epoch == self.epoch else None
        if pending is None or pending.future.done():
            self.counters["unasked"] += 1
            return
        self.counters["replies"] += 1
        pending.answered = True
        if reply.spans and pending.trace is not None:
            pending.trace.extend(reply.spans)
        if reply.error is not None:
            pending.future.set_exception(from_wire(reply.error))
        else:
            pending.future.set_result(reply.body or {})

    def _told(self, link: Link, event: Event) -> None:
        link.event_ack_due = True
        if not link.events.see(event.seq):
            self.counters["event_repeats"] += 1
            return
        self.counters["events"] += 1
        ledger = link.events
        try:
            handling = self.on_event(link.sandbox, event.topic, event.body)
        except Exception as exc:
            log.error("event could not be handled", sandbox=link.sandbox, topic=event.topic, error=repr(exc))
            handling = None
        if handling is None:
            ledger.done(event.seq)
            self._acknowledge_soon(link)
        else:
            self._spawn(self._finish_event(link, ledger, event, handling))

    async def _finish_event(self, link: Link, ledger: EventLedger, event: Event, handling: Awaitable[None]) -> None:
        try:
            await handling
        except Exception as exc:
            log.error("event could not be handled", sandbox=link.sandbox, topic=event.topic, error=repr(exc))
        ledger.done(event.seq)
        link.event_ack_due = True
        self._acknowledge_soon(link)

    def _acknowledge_soon(self, link: Link) -> None:
        if link not in self._acknowledging:
            self._acknowledging.add(link)
            self._loop.call_later(_EVENT_ACK_SECONDS, self._acknowledge_events, link)

    def _acknowledge_events(self, link: Link) -> None:
        self._acknowledging.discard(link)
        if self._serving and link.alive and link.event_ack_due:
            self._beat_one(link, time.monotonic())

    # -- greetings and deaths ------------------------------------------------------------------------------------------

    def _greeted(self, hello: Hello) -> None:
        link = self._links.get(hello.sandbox)
        if link is None:
            link = self._links[hello.sandbox] = Link(hello.sandbox)
        identity, started = routing_id(hello.sandbox, hello.instance), start_time(hello.pid) or 0
        if _is_outdated(link, hello, started):
            self.counters["stale"] += 1
            log.warning("an outdated worker greets", sandbox=hello.sandbox, generation=hello.generation, pid=hello.pid)
            self._send(identity, Welcome(self.epoch, link.generation))
            return
        new = identity != link.identity
        if new and link.alive:
            self._send(link.identity, Welcome(self.epoch, hello.generation))  # it has been replaced, and lives
        link.identity = identity
        link.hello, link.started, link.suspended = hello, started, ""
        link.alive, link.heard, link.silent = True, time.monotonic(), False
        link.connection += 1
        if new:
            link.events = EventLedger()
            self._watch(link, hello.pid)
            log.info("worker greets", sandbox=hello.sandbox, generation=hello.generation, state=hello.state)
        try:
            self.on_hello(hello)
        except Exception as exc:
            log.error("greeting could not be handled", sandbox=hello.sandbox, error=repr(exc))
        link.wake_waiters()
        self.counters["resent"] += sum(pending.connection > 0 for pending in link.unsent())
        self._send_unsent(link)

    def _watch(self, link: Link, pid: int) -> None:
        self._unwatch(link)
        try:
            link.pidfd = os.pidfd_open(pid)
        except OSError:
            self._loop.call_soon(self._died, link, link.connection)
            return
        self._loop.add_reader(link.pidfd, self._died, link, link.connection)

    def _unwatch(self, link: Link) -> None:
        if link.pidfd >= 0:
            self._loop.remove_reader(link.pidfd)
            os.close(link.pidfd)
            link.pidfd = -1

    def _died(self, link: Link, connection: int) -> None:
        """The process behind the link has ended (unless a successor has greeted since)."""
        if link.pidfd < 0 and link.connection != connection:
            return
        self._unwatch(link)
        link.alive = False
        self._full.discard(link)
        self.counters["deaths"] += 1
        log.info("worker died", sandbox=link.sandbox, generation=link.generation, unanswered=len(link.pending))
        if self.on_death is not None:
            self._spawn(self._told_death(link.sandbox, self.on_death(link.sandbox)))

    async def _told_death(self, sandbox: str, handling: Awaitable[None]) -> None:
        try:
            await handling
        except Exception as exc:
            log.error("the death of a worker could not be handled", sandbox=sandbox, error=repr(exc))

    # -- sending -------------------------------------------------------------------------------------------------------

    def _send_request(self, link: Link, pending: Pending) -> bool:
        """False: the worker does not read, try again later."""
        n, key, op, body, deadline = pending.n, pending.key, pending.op, pending.body, pending.deadline
        trace = pending.trace.context if pending.trace is not None else None
        try:
            sent = self._send(
                link.identity, Request(self.epoch, n, key, op, body, deadline, link.generation, link.acks, trace)
            )
        except MalformedMessage as exc:
            pending.future.set_exception(InvalidArgument(str(exc), field="body"))
            return True
        if sent is Sent.FULL:
            self._full.add(link)
            if not self._retrying:
                self._retrying = True
                self._loop.call_later(_FULL_SECONDS, self._retry_full)
            return False
        if sent is Sent.QUEUED:
            pending.connection = link.connection
            link.acks = []
        return True  # to nobody: the worker greets when it is connected again

    def _send_unsent(self, link: Link) -> None:
        self._full.discard(link)
        for pending in link.unsent():
            if not self._send_request(link, pending):
                return

    def _retry_full(self) -> None:
        self._retrying = False
        for link in list(self._full):
            self._send_unsent(link)

    def _send(self, identity: bytes, message: Message) -> Sent:
        sent = self._endpoint.send(identity, encode(message))
        if sent is Sent.NOBODY:
            self.counters["unroutable"] += 1
        elif sent is Sent.FULL:
            self.counters["full"] += 1
        return sent

    async def _beat(self) -> None:
        """Heartbeats, and acknowledgements that no request has carried."""
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            now = time.monotonic()
            for link in self.links:
                if link.alive and (link.acks or link.event_ack_due or now - link.beat >= HEARTBEAT_SECONDS):
                    self._beat_one(link, now)

    def _beat_one(self, link: Link, now: float) -> None:
        beat = Heartbeat(self.epoch, link.generation, link.acks, link.events.acknowledged)
        if self._send(link.identity, beat) is Sent.QUEUED:
            link.acks, link.event_ack_due = [], False
        link.beat = now
        if now - link.heard > SILENCE_SECONDS and not link.silent:
            link.silent = True
            log.warning("the worker is silent", sandbox=link.sandbox, seconds=round(now - link.heard))

    def _spawn(self, coro: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coro)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _is_outdated(link: Link, hello: Hello, started: int) -> bool:
    """Whether a newer worker than the greeting one is known. A lower generation in a younger process is not older: the
    sandbox has been removed and made anew under its old name."""
    if hello.generation >= link.generation:
        return False
    return not link.started or started <= link.started
