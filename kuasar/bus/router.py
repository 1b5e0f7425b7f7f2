"""The gateway's side of the bus: a ROUTER on the asyncio loop (docs/bus.md).

Keeps every request until it is answered and sends it again to a successor of the worker that had it. A worker's death
is noticed by its pidfd; what it means is decided by whoever set ``on_death``.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import zmq

from kuasar.bus.messages import (
    Event,
    Heartbeat,
    Hello,
    MalformedMessage,
    Message,
    Reply,
    Request,
    decode,
    encode,
)
from kuasar.core import log
from kuasar.core.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, Unavailable, from_wire

HEARTBEAT_SECONDS = 5.0
ACK_SECONDS = 0.5
_BATCH = 200
_MAX_PENDING = 4096


@dataclass(eq=False)
class _Pending:
    """A request that is not answered."""

    request: Request
    future: asyncio.Future[dict[str, Any]]
    sent_to: int = 0
    """Generation of the worker it was last sent to; 0: to nobody yet."""


@dataclass(eq=False)
class Link:
    """What the gateway knows of the worker of one sandbox."""

    sandbox: str
    hello: Hello | None = None
    generation: int = 0
    alive: bool = False
    suspended: str = ""
    """Why there will be no worker for now; empty: one is there or is expected."""
    pidfd: int = -1
    pending: dict[int, _Pending] = field(default_factory=dict)
    acks: list[str] = field(default_factory=list)
    event_seq: int = 0
    event_ack_due: bool = False
    greeted: asyncio.Event = field(default_factory=asyncio.Event)


class BusRouter:
    """One per gateway. Set the callbacks before :meth:`start`."""

    def __init__(self, address: str) -> None:
        self.epoch = time.time_ns()
        self.on_hello: Callable[[Hello], None] = lambda hello: None
        self.on_event: Callable[[str, str, dict[str, Any]], None] = lambda sandbox, topic, body: None
        self.on_death: Callable[[str], Coroutine[Any, Any, None]] | None = None
        self.counters = {"malformed": 0, "stale": 0, "resent": 0, "unroutable": 0, "unasked": 0}
        self._address = address
        self._links: dict[str, Link] = {}
        self._numbers = 0
        self._scheduled = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._lock_fd = -1

    async def start(self) -> None:
        """Bind and serve. Raises Unavailable when another gateway holds the endpoint."""
        self._loop = asyncio.get_running_loop()
        path = self._address.removeprefix("ipc://")
        self._lock_fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(f"another gateway holds {self._address}") from None
        self._context = zmq.Context(1)
        self._socket = self._context.socket(zmq.ROUTER)
        for option, value in ((zmq.ROUTER_MANDATORY, 1), (zmq.ROUTER_HANDOVER, 1), (zmq.LINGER, 0)):
            self._socket.setsockopt(option, value)
        self._socket.bind(self._address)
        os.chmod(path, 0o600)
        self._loop.add_reader(self._socket.FD, self._drain)
        self._drain_soon()
        self._spawn(self._beat())

    async def close(self) -> None:
        """Wake everyone who waits with Unavailable, and end."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for link in self._links.values():
            self._fail_all(link, "the gateway is stopping")
            self._unwatch(link)
        self._loop.remove_reader(self._socket.FD)
        self._socket.close()
        self._context.term()
        os.close(self._lock_fd)

    # -- calling -------------------------------------------------------------------------------------------------------

    async def call(
        self, sandbox: str, op: str, body: dict[str, Any], *, key: str = "", deadline: float | None = None
    ) -> dict[str, Any]:
        """Have the worker of ``sandbox`` do ``op``; ``deadline`` is on CLOCK_MONOTONIC, None waits for ever.

        Raises what the worker answers; DeadlineExceeded when it does not answer in time; Unavailable when there is no
        worker in time, or an operator has stopped it.
        """
        link = self._links.get(sandbox)
        if link is None:
            link = self._links[sandbox] = Link(sandbox)
        if link.suspended and deadline is not None:
            raise Unavailable(f"{op}: sandbox {sandbox}: {link.suspended}")
        if len(link.pending) >= _MAX_PENDING:
            raise ResourceExhausted(f"{op}: {_MAX_PENDING} requests wait for sandbox {sandbox}")
        self._numbers += 1
        request = Request(self.epoch, self._numbers, key, op, body, deadline, link.generation, [])
        pending = _Pending(request, self._loop.create_future())
        link.pending[request.n] = pending
        try:
            if link.alive:
                self._send_request(link, pending)
            return await self._answer(link, pending)
        finally:
            link.pending.pop(request.n, None)
            if key:
                link.acks.append(key)

    async def _answer(self, link: Link, pending: _Pending) -> dict[str, Any]:
        request = pending.request
        if request.deadline is None:
            return await pending.future
        try:
            async with asyncio.timeout(request.deadline - time.monotonic()):
                return await pending.future
        except TimeoutError:
            if not pending.sent_to or not link.alive:
                raise Unavailable(f"{request.op}: the worker of sandbox {link.sandbox} is not there") from None
            raise DeadlineExceeded(f"{request.op}: sandbox {link.sandbox} did not answer in time") from None

    def suspend(self, sandbox: str, why: str) -> None:
        """There will be no worker for now: calls with a deadline fail at once until one greets, waits go on waiting."""
        link = self._links.get(sandbox)
        if link is None or link.alive:
            return
        link.suspended = why
        for pending in list(link.pending.values()):
            if pending.request.deadline is not None and not pending.future.done():
                pending.future.set_exception(Unavailable(f"{pending.request.op}: sandbox {sandbox}: {why}"))

    def forget(self, sandbox: str) -> None:
        """The sandbox is gone: whoever still waits is told."""
        link = self._links.pop(sandbox, None)
        if link is not None:
            self._fail_all(link, "the sandbox is gone")
            self._unwatch(link)

    def _fail_all(self, link: Link, why: str) -> None:
        for pending in list(link.pending.values()):
            if not pending.future.done():
                pending.future.set_exception(Unavailable(f"{pending.request.op}: sandbox {link.sandbox}: {why}"))

    def link(self, sandbox: str) -> Link | None:
        """What is known of a sandbox's worker."""
        return self._links.get(sandbox)

    # -- receiving -----------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """The descriptor of a ZeroMQ socket is edge-triggered: read until there is nothing, and after each send too."""
        self._scheduled = False
        for _ in range(_BATCH):
            try:
                identity, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._receive_frames(identity, frames)
        self._drain_soon()

    def _drain_soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._drain)

    def _receive_frames(self, identity: bytes, frames: list[bytes]) -> None:
        sandbox = identity.decode("ascii", errors="replace")
        if frames in ([], [b""]):
            self._send(sandbox, Heartbeat(self.epoch, 0, [], 0))  # a probe: say who we are, the worker greets
            return
        try:
            if len(frames) != 1:
                raise MalformedMessage(f"{len(frames)} frames, one is a message")
            self._receive(sandbox, decode(frames[0]))
        except MalformedMessage as exc:
            self.counters["malformed"] += 1
            log.warning("malformed message dropped", sandbox=sandbox, error=exc)

    def _receive(self, sandbox: str, message: Message) -> None:
        if isinstance(message, Hello):
            if message.sandbox != sandbox:
                raise MalformedMessage(f"hello of {message.sandbox!r} under the name {sandbox!r}")
            self._greeted(message)
            return
        link = self._links.get(sandbox)
        if link is None or message.generation < link.generation:
            self.counters["stale"] += 1
            return
        if isinstance(message, Reply):
            self._replied(link, message)
        elif isinstance(message, Event):
            self._told(link, message)
        elif isinstance(message, Request):
            raise MalformedMessage("a worker does not send requests")

    def _greeted(self, hello: Hello) -> None:
        link = self._links.setdefault(hello.sandbox, Link(hello.sandbox))
        known = link.hello
        if known is not None and hello.generation < link.generation:
            self.counters["stale"] += 1
            log.warning("an outdated worker greets", sandbox=hello.sandbox, generation=hello.generation)
            return
        successor = known is None or known.instance != hello.instance
        link.hello, link.generation, link.alive, link.suspended = hello, hello.generation, True, ""
        if successor:
            link.event_seq = 0
            self._watch(link)
            log.info("worker greets", sandbox=hello.sandbox, generation=hello.generation, state=hello.state)
        self.on_hello(hello)
        link.greeted.set()
        for pending in list(link.pending.values()):
            if pending.future.done():
                continue
            if pending.sent_to:
                self.counters["resent"] += 1
            self._send_request(link, pending)

    def _replied(self, link: Link, reply: Reply) -> None:
        pending = link.pending.get(reply.n) if reply.epoch == self.epoch else None
        if pending is None or pending.future.done():
            self.counters["unasked"] += 1
            return
        if reply.error is not None:
            pending.future.set_exception(from_wire(reply.error))
        else:
            pending.future.set_result(reply.body or {})

    def _told(self, link: Link, event: Event) -> None:
        link.event_ack_due = True
        if event.seq <= link.event_seq:
            return
        link.event_seq = event.seq
        self.on_event(link.sandbox, event.topic, event.body)

    # -- sending -------------------------------------------------------------------------------------------------------

    def _send_request(self, link: Link, pending: _Pending) -> None:
        acks, link.acks = link.acks, []
        request = pending.request
        stamped = Request(
            request.epoch, request.n, request.key, request.op, request.body, request.deadline, link.generation, acks
        )
        try:
            if self._send(link.sandbox, stamped):
                pending.sent_to = link.generation
        except MalformedMessage as exc:
            pending.future.set_exception(InvalidArgument(f"{request.op}: {exc}"))

    def _send(self, sandbox: str, message: Message) -> bool:
        data = encode(message)
        try:
            self._socket.send_multipart((sandbox.encode(), data), zmq.NOBLOCK)
        except (zmq.Again, zmq.ZMQError) as exc:
            # Nobody there, or a full pipe: unanswered requests are sent again at the next greeting.
            self.counters["unroutable"] += 1
            log.debug("not sent", sandbox=sandbox, kind=message.kind, why=exc)
            return False
        finally:
            self._drain_soon()
        return True

    async def _beat(self) -> None:
        """Heartbeats, and acknowledgements that no request has carried."""
        last = 0.0
        while True:
            await asyncio.sleep(ACK_SECONDS)
            everyone = time.monotonic() - last >= HEARTBEAT_SECONDS
            if everyone:
                last = time.monotonic()
            for link in list(self._links.values()):
                if link.alive and (everyone or link.acks or link.event_ack_due):
                    acks, link.acks, link.event_ack_due = link.acks, [], False
                    self._send(link.sandbox, Heartbeat(self.epoch, 0, acks, link.event_seq))

    # -- death ---------------------------------------------------------------------------------------------------------

    def _watch(self, link: Link) -> None:
        self._unwatch(link)
        assert link.hello is not None
        try:
            link.pidfd = os.pidfd_open(link.hello.pid)
        except ProcessLookupError:
            self._died(link)
            return
        self._loop.add_reader(link.pidfd, self._died, link)

    def _unwatch(self, link: Link) -> None:
        if link.pidfd >= 0:
            self._loop.remove_reader(link.pidfd)
            os.close(link.pidfd)
            link.pidfd = -1

    def _died(self, link: Link) -> None:
        self._unwatch(link)
        link.alive = False
        link.greeted.clear()
        log.info("worker died", sandbox=link.sandbox, generation=link.generation, unanswered=len(link.pending))
        if self.on_death is not None:
            self._spawn(self.on_death(link.sandbox))

    def _spawn(self, coro: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coro)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
