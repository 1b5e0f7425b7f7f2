"""One task connection of containerd: requests in, answers out, in whatever order they are ready.

The connection outlives the gateway: the keeper holds it, its log (`connection_log.py`) holds what is owed on it, and
the outlet knows to the byte what has been sent. A request is acted on only after it is written down; its answer is
forgotten by worker and agent only after it has been sent or is written down itself. So a successor repeats what was not
answered, under the same key.

A peer that closes ends the connection; what it asked to be changed goes on. A peer that breaks the protocol is closed.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from kuasar.api.gen.ttrpc.ttrpc_pb2 import Request, Response, Status
from kuasar.core import log
from kuasar.core.errors import InvalidArgument, KuasarError, ResourceExhausted, Unimplemented
from kuasar.core.failpoints import failpoint
from kuasar.core.ttrpc import FrameType, ProtocolError, encode_frame
from kuasar.gateway.calls import Method
from kuasar.gateway.connection_log import ConnectionLog
from kuasar.gateway.exchange import Recorded
from kuasar.gateway.outlet import Outlet
from kuasar.gateway.status import code_of

NAMESPACE_KEY = "containerd-namespace-ttrpc"
_MAX_CALLS = 1024
"""Calls under way on one connection; more are refused."""
_MAX_UNSENT = 16 * 1024 * 1024
"""Bytes a peer may leave unread before it is cut off."""

_GRACE_SECONDS = 5.0
"""What a repeated call has at least, if it had that much at first."""

Services = dict[str, dict[str, Method]]


@dataclass(eq=False)
class _DurableCall:
    """:class:`kuasar.gateway.calls.Durable` for one request of a connection."""

    key: str
    repeated: bool
    log: ConnectionLog
    done: list[Callable[[], None]] = field(default_factory=list)

    def sandbox_of(self, container: str) -> str:
        return self.log.exchange.bound.get(container, "")

    def bind(self, container: str, sandbox: str) -> None:
        self.log.bind(container, sandbox)

    def when_answered(self, done: Callable[[], None]) -> None:
        self.done.append(done)

    def settle(self) -> None:
        """The answer is safe, or nobody waits for it any more."""
        for done in self.done:
            done()


class Connection:
    """Serves from :meth:`start` until the peer closes (then ``ended`` is called once) or :meth:`detach`."""

    def __init__(
        self,
        number: int,
        peer: socket.socket,
        connection_log: ConnectionLog,
        outlet: Outlet,
        services: Services,
        ended: Callable[[Connection], None],
    ) -> None:
        """Owns ``peer`` and ``connection_log``."""
        self.number = number
        self._peer = peer
        self._log = connection_log
        self._outlet = outlet
        self._services = services
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._calls: set[asyncio.Task[None]] = set()
        self._waits: set[asyncio.Task[None]] = set()
        self._open = True
        self._writing = False
        self._unsent_bytes = 0

    def start(self) -> None:
        """Serve; first what a predecessor has left unanswered or unsent."""
        answers = self._log.exchange.unsent
        self._unsent_bytes = sum(len(answer.frame) - answer.sent for answer in answers.values())
        for recorded in list(self._log.exchange.requests.values()):
            self._begin(recorded, repeated=True)
        self._loop.add_reader(self._peer, self._readable)
        if answers:
            self._wait_writable()

    def detach(self) -> None:
        """Let go of the connection and leave it as it is to a successor. Nothing is answered any more."""
        self._stop()
        self._peer.close()
        self._log.close()
        for task in self._calls:
            task.cancel()

    def abort(self, why: str) -> None:
        """End the connection now, for everyone who holds it. Harmless to repeat."""
        if self._open:
            log.warning("ttrpc connection ended", why=why)
            self._end()

    def _stop(self) -> None:
        self._open = False
        self._loop.remove_reader(self._peer)
        if self._writing:
            self._loop.remove_writer(self._peer)
            self._writing = False

    def _end(self) -> None:
        self._stop()
        with suppress(OSError):  # the keeper's duplicate would keep it open
            self._peer.shutdown(socket.SHUT_RDWR)
        self._ended(self)
        self._peer.close()
        self._log.remove()
        for task in self._waits:
            task.cancel()  # what changes something goes on: it was asked for

    # -- requests ------------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            fresh = self._log.take(self._peer)
        except BlockingIOError:
            return
        except (ProtocolError, OSError) as exc:
            self.abort(str(exc))
            return
        if fresh is None:
            self._end()
            return
        for recorded in fresh:
            self._begin(recorded, repeated=False)
            if not self._open:
                return

    def _begin(self, recorded: Recorded, repeated: bool) -> None:
        durable = _DurableCall(f"t{self.number:x}.{recorded.stream}", repeated, self._log)
        try:
            if len(self._calls) >= _MAX_CALLS:
                raise ResourceExhausted(f"{_MAX_CALLS} calls are under way on this connection")
            request, method = self._look_up(recorded.payload)
        except KuasarError as exc:
            self._send(recorded.stream, _refusal(exc), durable)
            return
        task = self._loop.create_task(self._answer(recorded, request, method, durable))
        for tasks in (self._calls, self._waits) if method.open_ended else (self._calls,):
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    def _look_up(self, payload: bytes) -> tuple[Request, Method]:
        try:
            request = Request.FromString(payload)
        except DecodeError as exc:
            raise InvalidArgument(f"not a ttrpc request: {exc}", field="request") from exc
        methods = self._services.get(request.service)
        if methods is None:
            raise Unimplemented(f"service {request.service!r} is not served here", capability=request.service)
        method = methods.get(request.method)
        if method is None:
            raise Unimplemented(f"{request.service} has no method {request.method!r}", capability=request.method)
        return request, method

    async def _answer(self, recorded: Recorded, request: Request, method: Method, durable: _DurableCall) -> None:
        deadline = None
        if request.timeout_nano > 0:
            deadline = (recorded.at + request.timeout_nano) / 1e9
            if durable.repeated:  # our own death must not be what the call runs out of time for
                deadline = max(deadline, time.monotonic() + min(request.timeout_nano / 1e9, _GRACE_SECONDS))
        metadata = {entry.key: entry.value for entry in request.metadata}
        try:
            try:
                message = method.request.FromString(request.payload)
            except DecodeError as exc:
                raise InvalidArgument(f"{method.name}: the request does not decode: {exc}", field="payload") from exc
            answer = await method(message, metadata, NAMESPACE_KEY, deadline, durable)
            response = Response(payload=answer.SerializeToString())
        except KuasarError as exc:
            response = _refusal(exc)
        failpoint("gateway.request.done")
        self._send(recorded.stream, response, durable)

    # -- answers -------------------------------------------------------------------------------------------------------

    def _send(self, stream: int, response: Response, durable: _DurableCall) -> None:
        if self._open:
            try:
                frame = encode_frame(stream, FrameType.RESPONSE, response.SerializeToString())
            except ResourceExhausted as exc:
                frame = encode_frame(stream, FrameType.RESPONSE, _refusal(exc).SerializeToString())
            self._send_frame(stream, frame)
        durable.settle()

    def _send_frame(self, stream: int, frame: bytes) -> None:
        if self._log.exchange.unsent:
            sent = 0
        else:
            try:
                sent = self._outlet.send(self.number, stream, self._peer, frame)
            except OSError as exc:
                self.abort(f"an answer could not be sent: {exc}")
                return
            if sent == len(frame):
                self._log.answered(stream)
                return
        self._log.keep(stream, frame, sent)
        self._unsent_bytes += len(frame) - sent
        if self._unsent_bytes > _MAX_UNSENT:
            self.abort(f"more than {_MAX_UNSENT} bytes of answers are unread")
        else:
            self._wait_writable()

    def _wait_writable(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._peer, self._writable)

    def _writable(self) -> None:
        """Go on where the peer's buffer was full."""
        unsent = self._log.exchange.unsent
        while unsent:
            stream, answer = next(iter(unsent.items()))
            rest = answer.frame[answer.sent :]
            try:
                moved = self._outlet.send(self.number, stream, self._peer, rest, answer.sent)
            except OSError as exc:
                self.abort(f"an answer could not be sent: {exc}")
                return
            self._unsent_bytes -= moved
            if moved < len(rest):
                if moved:
                    self._log.progress(stream, answer.sent + moved)
                return
            self._log.answered(stream)
        self._loop.remove_writer(self._peer)
        self._writing = False


def settle_last_piece(logs: Iterable[tuple[int, ConnectionLog]], outlet: Outlet) -> None:
    """Write down what the predecessor sent last, in case it died before it could. Harmless when it had."""
    piece = outlet.last_piece()
    if piece is None:
        return
    for number, connection_log in logs:
        if number != piece.connection:
            continue
        if piece.sent == len(piece.data):
            connection_log.answered(piece.stream)
        elif piece.stream in connection_log.exchange.unsent:  # with nothing sent, if it had to wait behind another
            connection_log.progress(piece.stream, piece.before + piece.sent)
        elif piece.stream in connection_log.exchange.requests:
            connection_log.keep(piece.stream, piece.data, piece.sent)


def _refusal(error: KuasarError) -> Response:
    return Response(status=Status(code=code_of(error), message=error.message))
