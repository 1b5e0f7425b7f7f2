"""The worker's end of the agent protocol: requests out, replies and events in.

A client belongs to one connection and dies with it; a worker that reconnects makes a new one. What makes a repeat
harmless is the key of a request (docs/bus.md, "Requests"), not the client.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

from kuasar.agent.channel import Channel
from kuasar.agent.protocol import TRACE, VERSION, Ack, Data, Event, Frame, Hello, MalformedFrame, Reply, Request, Window
from kuasar.core import log
from kuasar.core.aio import Future, Loop
from kuasar.core.errors import InvalidArgument, Unavailable, from_wire
from kuasar.core.spans import Span, Trace, current

EventHandler = Callable[[int, str, dict[str, Any]], None]
StreamHandler = Callable[[Data | Window], None]


class AgentClient:
    """A channel to an agent over a connected stream socket, which it owns.

    Call :meth:`hello` first. ``on_event(seq, topic, body)`` gets every event in order, those that came before it was
    set included; confirm with :meth:`ack_event`. ``on_stream(frame)`` gets the frames of all streams in the same way.
    ``on_close()`` is called once when the agent is gone (also when it was gone before ``on_close`` was set), not after
    a :meth:`close` of our own.
    """

    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        self._loop = loop
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._traces: dict[int, Trace] = {}
        self._can_trace = False
        self._hello: Future[Hello] = Future(loop)
        self._early_events: list[Event] = []
        self._early_streams: list[Data | Window] = []
        self._on_event: EventHandler | None = None
        self._on_stream: StreamHandler | None = None
        self._on_close: Callable[[], None] | None = None
        self._lost = ""
        self.capabilities: frozenset[str] = frozenset()
        """What the agent has said that it can."""
        self._channel = Channel(loop, sock, self._on_frame, self._on_lost)

    # -- greeting --------------------------------------------------------------------------------------------------

    async def hello(self, deadline: float | None = None) -> Hello:
        """What the agent says of itself. Raises DeadlineExceeded; Unavailable if it is gone or of another version."""
        hello = await self._loop.wait_for(self._hello, deadline, "the agent's greeting")
        if hello.version != VERSION:
            self.close()
            raise Unavailable(f"the agent speaks version {hello.version}, this worker version {VERSION}")
        self._can_trace = TRACE in hello.capabilities
        self.capabilities = frozenset(hello.capabilities)
        return hello

    @property
    def closed(self) -> bool:
        """Whether the connection is of no more use."""
        return self._channel.closed

    @property
    def on_event(self) -> EventHandler | None:
        """Who gets the events."""
        return self._on_event

    @on_event.setter
    def on_event(self, handler: EventHandler) -> None:
        self._on_event = handler
        self._loop.call_soon(self._deliver_early)

    @property
    def on_stream(self) -> StreamHandler | None:
        """Who gets the frames of the streams. Before there is one, there come only few: no stream has a window."""
        return self._on_stream

    @on_stream.setter
    def on_stream(self, handler: StreamHandler) -> None:
        self._on_stream = handler
        early, self._early_streams = self._early_streams, []
        for frame in early:
            handler(frame)

    @property
    def on_close(self) -> Callable[[], None] | None:
        """Who is told that the agent is gone."""
        return self._on_close

    @on_close.setter
    def on_close(self, handler: Callable[[], None]) -> None:
        self._on_close = handler
        if self._lost:
            self._loop.call_soon(handler)

    # -- requests --------------------------------------------------------------------------------------------------

    async def call(self, op: str, body: dict[str, Any], key: str = "", deadline: float | None = None) -> dict[str, Any]:
        """Ask the agent for ``op`` and give the body of its answer.

        ``key`` names a mutating request, so that a repeat is answered from memory. ``deadline`` is in seconds of
        CLOCK_MONOTONIC. Raises what the agent answers, DeadlineExceeded, and Unavailable as soon as the agent is gone.
        """
        if self.closed:
            raise Unavailable(f"{op}: the agent is gone: {self._lost or 'the connection was closed'}")
        trace = current() if self._can_trace else None
        if trace is None:
            return await self._call(op, body, key, deadline)
        with Span(trace, f"call {op}", {}) as span:
            return await self._call(op, body, key, deadline, trace, span.context)

    async def _call(
        self,
        op: str,
        body: dict[str, Any],
        key: str,
        deadline: float | None,
        trace: Trace | None = None,
        context: str | None = None,
    ) -> dict[str, Any]:
        n = next(self._numbers)
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        future: Future[dict[str, Any]] = Future(self._loop)
        self._waiting[n] = future
        if trace is not None:
            self._traces[n] = trace
        try:
            self._channel.send(Request(n, key, op, body, timeout, context))
            return await self._loop.wait_for(future, deadline, op)
        except MalformedFrame as exc:
            raise InvalidArgument(f"{op}: {exc}") from exc
        finally:
            self._waiting.pop(n, None)
            self._traces.pop(n, None)

    def ack_keys(self, keys: Iterable[str]) -> None:
        """The answers to these keyed requests are needed no more. Harmless when the agent is gone."""
        self._ack(Ack(list(keys), 0))

    def ack_event(self, seq: int) -> None:
        """Events up to and including ``seq`` have arrived for good. Harmless when the agent is gone."""
        self._ack(Ack([], seq))

    def _ack(self, ack: Ack) -> None:
        if not self.closed:
            self._channel.send(ack)

    def send(self, frame: Data | Window) -> None:
        """Send a frame of a stream. Harmless when the agent is gone: what counts is said again on the next
        connection."""
        if not self.closed:
            self._channel.send(frame)

    def close(self) -> None:
        """Close the connection; whoever waits for an answer gets Unavailable."""
        self._channel.close()
        self._wake_all("the connection was closed")

    # -- the channel -----------------------------------------------------------------------------------------------

    def _on_frame(self, frame: Frame) -> None:
        if isinstance(frame, Data | Window):
            if self._on_stream is None:
                self._early_streams.append(frame)
            else:
                self._on_stream(frame)
        elif isinstance(frame, Reply):
            self._on_reply(frame)
        elif isinstance(frame, Event):
            if self._on_event is None or self._early_events:
                self._early_events.append(frame)
            else:
                self._deliver(frame)
        elif isinstance(frame, Hello):
            self._hello.set_result(frame)
        else:
            log.warning("the agent sent what only a worker sends", kind=frame.kind)

    def _on_reply(self, reply: Reply) -> None:
        future = self._waiting.pop(reply.n, None)
        if future is None:
            return  # its caller has given up
        if reply.spans and reply.n in self._traces:
            self._traces[reply.n].extend(reply.spans)
        if reply.error is not None:
            future.set_exception(from_wire(reply.error))
        else:
            future.set_result(reply.body or {})

    def _deliver_early(self) -> None:
        while self._early_events:
            self._deliver(self._early_events.pop(0))

    def _deliver(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event.seq, event.topic, event.body)

    def _on_lost(self, reason: str) -> None:
        self._lost = reason
        self._wake_all(reason)
        if self._on_close is not None:
            self._on_close()

    def _wake_all(self, reason: str) -> None:
        waiting, self._waiting = self._waiting, {}
        error = Unavailable(f"the agent is gone: {reason}")
        self._hello.set_exception(error)
        for future in waiting.values():
            future.set_exception(Unavailable(error.message))
