"""The worker's side of the bus: a DEALER on the worker's own loop (docs/bus.md).

Owns the ZeroMQ context and socket of its process; made after the fork, because a context has threads. Requests are
carried out as tasks, side by side; answers to keyed requests and events are kept until the gateway acknowledges them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
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
from kuasar.core.aio import Cancelled, Loop
from kuasar.core.errors import KuasarError, wrap
from kuasar.core.replies import ReplyCache

MAX_EVENTS = 4096
_SILENCE_SECONDS = 15.0
_LINGER_MS = 1000
_BATCH = 100


class BusDealer:
    """One per worker. ``hello`` describes the worker at the moment of a greeting; ``handle`` carries out a request."""

    def __init__(
        self,
        loop: Loop,
        address: str,
        identity: str,
        hello: Callable[[], Hello],
        handle: Callable[[Request], Awaitable[dict[str, Any]]],
    ) -> None:
        self._loop = loop
        self._address = address
        self._hello = hello
        self._handle = handle
        self._replies = ReplyCache()
        self._events: deque[tuple[Event, Callable[[], None]]] = deque()
        self._seq = 0
        self._epoch = 0
        self._generation = 0
        self._last_heard = time.monotonic()
        self._scheduled = False
        self.on_outdated: Callable[[], None] = lambda: None
        """Called when the gateway knows a newer worker of this sandbox."""
        self.on_acked: Callable[[list[str]], None] = lambda keys: None
        """Called with the keys whose answers the gateway has."""
        self.dropped_events = 0
        self.malformed = 0
        self._context = zmq.Context(1)
        self._socket = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.IDENTITY, identity.encode()),
            (zmq.IMMEDIATE, 1),
            (zmq.PROBE_ROUTER, 1),
            (zmq.RECONNECT_IVL, 10),
            (zmq.RECONNECT_IVL_MAX, 200),
            (zmq.LINGER, 0),
        ):
            self._socket.setsockopt(option, value)

    def start(self) -> None:
        """Connect; the greeting follows when the gateway answers the probe."""
        self._generation = self._hello().generation
        self._socket.connect(self._address)
        self._loop.add_reader(self._socket.FD, self._drain)
        self._loop.call_soon(self._drain)
        self._loop.call_later(_SILENCE_SECONDS, self._watch_silence)

    async def close(self) -> None:
        """Send what is queued, at most for a second, and end."""
        self._loop.remove_reader(self._socket.FD)
        self._socket.close(linger=_LINGER_MS)
        self._context.term()

    def publish(self, topic: str, body: dict[str, Any], acknowledged: Callable[[], None]) -> None:
        """Tell the gateway that something happened; ``acknowledged`` is called once it has it for good.

        Kept until then. When 4,096 wait, the oldest is given up, counted and logged: the newest tell how things are.
        """
        self._seq += 1
        event = Event(self._generation, self._seq, topic, body)
        if len(self._events) >= MAX_EVENTS:
            lost, _ = self._events.popleft()
            self.dropped_events += 1
            log.error("event given up: the gateway acknowledges none", topic=lost.topic, dropped=self.dropped_events)
        self._events.append((event, acknowledged))
        if self._epoch:
            self._send(event)

    # -- receiving -----------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """The descriptor of a ZeroMQ socket is edge-triggered: read until there is nothing, and after each send too."""
        self._scheduled = False
        for _ in range(_BATCH):
            try:
                data = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._last_heard = time.monotonic()
            try:
                self._receive(decode(data))
            except MalformedMessage as exc:
                self.malformed += 1
                log.warning("malformed message dropped", error=exc, count=self.malformed)
        self._drain_soon()

    def _drain_soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._drain)

    def _receive(self, message: Message) -> None:
        if isinstance(message, Heartbeat):
            self._acknowledged(message.acks, message.event_ack)
            if message.epoch != self._epoch:
                self._greet(message.epoch)
        elif isinstance(message, Request):
            self._request(message)
        else:
            log.warning("a gateway does not send this", kind=message.kind)

    def _greet(self, epoch: int) -> None:
        log.debug("greeting the gateway", epoch=epoch)
        self._epoch = epoch
        self._send(self._hello())
        for event, _ in self._events:
            self._send(event)

    def _acknowledged(self, keys: Iterable[str], event_seq: int) -> None:
        acked = list(keys)
        if acked:
            self._replies.ack(acked)
            self.on_acked(acked)
        while self._events and self._events[0][0].seq <= event_seq:
            self._events.popleft()[1]()

    def _request(self, request: Request) -> None:
        if request.generation > self._generation:
            log.warning("a newer worker of this sandbox exists", own=self._generation, newer=request.generation)
            self.on_outdated()
            return
        self._acknowledged(request.acks, 0)
        try:
            new = self._replies.begin(
                request.key, request.op, request.body, lambda answer: self._answer(request, answer)
            )
        except KuasarError as exc:
            self._answer(request, {"error": exc.to_wire()})
            return
        if new:
            self._loop.spawn(self._carry_out(request), request.op)

    async def _carry_out(self, request: Request) -> None:
        answer: dict[str, Any]
        try:
            answer = {"body": await self._handle(request)}
        except (Exception, Cancelled) as exc:
            error = wrap(exc, request.op)
            if not isinstance(exc, KuasarError):
                log.error("unexpected error", op=request.op, error=repr(exc))
            log.info("refused", op=request.op, kind=error.kind, error=error.message)
            answer = {"error": error.to_wire()}
        self._replies.store(request.key, answer)
        self._answer(request, answer)

    def _answer(self, request: Request, answer: dict[str, Any]) -> None:
        reply = Reply(request.epoch, request.n, self._generation, answer.get("body"), answer.get("error"))
        try:
            self._send(reply)
        except MalformedMessage as exc:
            error = wrap(exc, request.op).to_wire()
            self._send(Reply(request.epoch, request.n, self._generation, None, error))

    # -- sending -------------------------------------------------------------------------------------------------------

    def _send(self, message: Message) -> None:
        data = encode(message)
        try:
            self._socket.send(data, zmq.NOBLOCK)
        except zmq.Again:
            # No gateway, or one that does not read: it will ask again, and events are kept.
            log.debug("not sent: no gateway", kind=message.kind)
        self._drain_soon()

    def _watch_silence(self) -> None:
        silent = time.monotonic() - self._last_heard
        if silent >= _SILENCE_SECONDS:
            log.warning("no word from the gateway", seconds=round(silent))
        self._loop.call_later(_SILENCE_SECONDS, self._watch_silence)
