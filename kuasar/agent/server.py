"""The agent's end of the protocol: one worker at a time, its requests carried out, its answers and events kept.

A new connection preempts the old one. What was under way goes on; its answer is kept if its request had a key, and the
new worker asks again. No request, however wrong, ends the agent.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from kuasar.agent.channel import Channel
from kuasar.agent.events import EventLog
from kuasar.agent.exchange import Exchange
from kuasar.agent.protocol import Ack, Data, Event, Frame, Hello, MalformedFrame, Reply, Request, Window
from kuasar.agent.requests import Body
from kuasar.agent.tasks import Operation
from kuasar.core import aio, log, spans
from kuasar.core.aio import Loop
from kuasar.core.errors import KuasarError, NotFound, ResourceExhausted, Unavailable, wrap
from kuasar.core.failpoints import failpoint
from kuasar.core.replies import Answer, Receiver, ReplyCache

MAX_REQUESTS = 1024
MAX_WAITS = 8192
_OPERATION_SECONDS = 120.0
"""What nobody gave a deadline to ends after this; only waits may last for ever."""
_WAITS = frozenset({"task.wait", "command.wait"})
_FLUSH_SECONDS = 1.0
_PEER = struct.Struct("3i")  # pid, uid, gid


class Server:
    """Accepts workers on ``listener``, which it owns. ``make_hello`` says at each greeting what there is."""

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        make_hello: Callable[[], Hello],
        events: EventLog,
        exchange: Exchange,
        operations: Mapping[str, Operation],
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._make_hello = make_hello
        self._events = events
        self._exchange = exchange
        self._operations = operations
        self._replies = ReplyCache()
        self._channel: Channel | None = None
        self._under_way = 0
        self._waits = 0
        self.on_worker: Callable[[], None] = lambda: None
        """Called when a worker has connected."""
        events.on_publish = self._send_event
        listener.setblocking(False)
        loop.add_reader(listener.fileno(), self._accept)

    # -- connections -----------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as exc:
            log.warning("cannot accept a connection", error=exc)
            return
        if not _is_ours(sock):
            log.warning("a connection of another user was refused")
            sock.close()
            return
        if self._channel is not None:
            log.info("a new worker takes over")
            self._channel.close()
        channel = Channel(self._loop, sock, lambda frame: self._on_frame(channel, frame), self._on_close)
        self._channel = channel
        channel.send(self._make_hello())
        for event in self._events.unacknowledged():
            channel.send(event)
        self._exchange.connected(channel)
        self.on_worker()

    def _on_close(self, reason: str) -> None:
        log.info("the worker is gone", reason=reason)
        self._channel = None

    def _send_event(self, event: Event) -> None:
        if self._channel is not None and not self._channel.closed:
            self._channel.send(event)

    async def finish(self) -> None:
        """Take no more connections; returns when everything sent has left, or after a second."""
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        deadline = time.monotonic() + _FLUSH_SECONDS
        while self._channel is not None and not self._channel.drained and time.monotonic() < deadline:
            await self._loop.sleep(0.001)

    # -- requests --------------------------------------------------------------------------------------------------

    def _on_frame(self, channel: Channel, frame: Frame) -> None:
        if isinstance(frame, Data | Window):
            self._exchange.on_frame(frame)
        elif isinstance(frame, Request):
            self._on_request(channel, frame)
        elif isinstance(frame, Ack):
            self._replies.ack(frame.keys)
            self._events.ack(frame.event)
        else:
            log.warning("a worker sent what only an agent sends", kind=frame.kind)

    def _on_request(self, channel: Channel, request: Request) -> None:
        def receive(answer: Answer) -> None:
            _reply(channel, request.n, answer)

        try:
            if not self._replies.begin(request.key, request.op, request.body, receive):
                return
        except KuasarError as exc:
            receive({"error": exc.to_wire()})
            return
        self._loop.spawn(self._carry_out(request, receive), request.op)

    async def _carry_out(self, request: Request, receive: Receiver) -> None:
        answer: Answer
        trace = spans.begin(request.trace, "agent")
        about = {"request": request.key} if request.key else {}
        if request.op.startswith("task.") and isinstance(container := request.body.get("id"), str):
            about["container"] = container
        aio.set_about(about)
        try:
            failpoint("agent.request")
            with spans.span(request.op):
                body = await self._run(request)
            answer = {"body": body}
            failpoint("agent.answer")
        except Exception as exc:
            error = wrap(exc, request.op)
            log.info("failed", op=request.op, kind=error.kind, error=error.message)
            answer = {"error": error.to_wire()}
        about.clear()
        receive(answer if trace is None else answer | {"spans": trace.finish()})
        self._replies.store(request.key, answer)

    async def _run(self, request: Request) -> dict[str, Any]:
        operation = self._operations.get(request.op)
        if operation is None:
            raise NotFound(f"op: there is no operation {request.op!r:.80}")
        body = Body(request.body)
        if request.op in _WAITS:
            deadline = None if request.timeout is None else time.monotonic() + request.timeout
            if self._waits >= MAX_WAITS:
                raise ResourceExhausted(f"{MAX_WAITS} waits are under way already")
            self._waits += 1
            try:
                return await operation(body, deadline)
            finally:
                self._waits -= 1
        seconds = _OPERATION_SECONDS if request.timeout is None else min(request.timeout, _OPERATION_SECONDS)
        if self._under_way >= MAX_REQUESTS:
            raise ResourceExhausted(f"{MAX_REQUESTS} requests are under way already")
        self._under_way += 1
        try:
            return await operation(body, time.monotonic() + seconds)
        finally:
            self._under_way -= 1


def _reply(channel: Channel, n: int, answer: Answer) -> None:
    """Answer on the connection that asked; nobody is there to hear it once that is closed."""
    if channel.closed:
        return
    with suppress(Unavailable):
        try:
            channel.send(Reply(n, answer.get("body"), answer.get("error"), answer.get("spans")))
        except MalformedFrame as exc:
            channel.send(Reply(n, error=ResourceExhausted(f"the answer cannot be sent: {exc}").to_wire()))


def _is_ours(sock: socket.socket) -> bool:
    """Whether the peer is of our user, or on a machine's vsock the host: no container has a say here."""
    if sock.family == socket.AF_VSOCK:
        return bool(sock.getpeername()[0] == socket.VMADDR_CID_HOST)
    if sock.family != socket.AF_UNIX:
        return True
    _, uid, _ = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return bool(uid == os.geteuid())
