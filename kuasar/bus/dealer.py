"""The worker's side of the bus: a DEALER on the worker's own loop (docs/bus.md).

One per worker; owns the ZeroMQ context and socket of its process, made in :meth:`BusDealer.start`, after the fork,
because a context has threads. Requests are carried out as tasks, side by side. Answers to keyed requests and events are
kept until the gateway acknowledges them, so that neither its death nor a broken connection loses one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import zmq

from kuasar.bus.messages import (
    MAX_MESSAGE_BYTES,
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
)
from kuasar.core import aio, log, spans
from kuasar.core.aio import Future, Loop, Task, Timer
from kuasar.core.errors import DeadlineExceeded, KuasarError, wrap
from kuasar.core.replies import Answer, ReplyCache

MAX_EVENTS = 4096
SILENCE_SECONDS = 15.0
_CLOSE_SECONDS = 1.0
_BATCH = 100
# Plain numbers: arithmetic with the enumerations costs more than the calls they are passed to.
_NOBLOCK = int(zmq.NOBLOCK)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_POLLOUT = int(zmq.POLLOUT)
_OPTIONS = {
    zmq.IMMEDIATE: 1,  # nothing is queued for a gateway that is away: it will ask again
    zmq.PROBE_ROUTER: 1,  # the gateway sees every new connection
    zmq.RECONNECT_IVL: 10,
    zmq.RECONNECT_IVL_MAX: 200,
    zmq.LINGER: 0,
    zmq.MAXMSGSIZE: MAX_MESSAGE_BYTES,
}


class BusDealer:
    """``hello`` describes the worker at the moment of a greeting; ``handle`` carries out a request.

    ``handle`` gives the body of the answer or raises a :class:`KuasarError`; anything else it raises is answered as
    internal. It runs to its end for a keyed request, whose deadline it has to mind itself; for an unkeyed one it is
    cancelled at the deadline, or earlier when nobody waits any more.
    """

    def __init__(
        self,
        loop: Loop,
        address: str,
        sandbox: str,
        hello: Callable[[], Hello],
        handle: Callable[[Request], Awaitable[dict[str, Any]]],
    ) -> None:
        self._loop = loop
        self._address = address
        self._sandbox = sandbox
        self._hello = hello
        self._handle = handle
        self._replies = ReplyCache()
        self._reads: dict[tuple[int, int], Task[None]] = {}
        self._unsent: deque[tuple[int, bytes]] = deque()
        self._events: deque[tuple[int, bytes, Callable[[], None]]] = deque()
        self._seq = 0
        self._sent_seq = 0
        self._epoch = 0
        self._generation = -1
        self._scheduled = False
        self._drained: Future[None] | None = None
        self._heard = time.monotonic()
        self._silence: Timer | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self.on_outdated: Callable[[], None] = lambda: None
        """Called when the gateway knows a newer worker of this sandbox: this one has to leave."""
        self.on_acked: Callable[[list[str]], None] = lambda keys: None
        """Called with the keys whose answers the gateway has."""
        self.dropped_events = 0
        self.malformed = 0
        self.stale = 0

    def start(self) -> None:
        """Connect; the greeting follows when the gateway answers the probe. Call once, after the fork."""
        self._know_own_generation()
        self._context = zmq.Context(1)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, routing_id(self._sandbox, self._hello().instance))
        for option, value in _OPTIONS.items():
            self._socket.setsockopt(option, value)
        self._socket.connect(self._address)
        self._fd = int(self._socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._fd, self._drain)
        self._drain()
        self._silence = self._loop.call_later(SILENCE_SECONDS, self._watch_silence)

    async def close(self) -> None:
        """Send what waits to be sent, at most for a second, and end. Requests under way are not answered any more.

        Harmless when closed or never started.
        """
        socket = self._socket
        if socket is None:
            return
        until = time.monotonic() + _CLOSE_SECONDS
        if self._unsent:
            self._drained = Future(self._loop)
            timer = self._loop.call_at(until, self._drained.set_result, None)
            await self._drained
            timer.cancel()
        self._socket = None
        if self._silence is not None:
            self._silence.cancel()
        self._loop.remove_reader(self._fd)
        for task in list(self._reads.values()):
            task.cancel()
        socket.close(linger=max(0, int((until - time.monotonic()) * 1000)))
        self._context.term()

    def publish(self, topic: str, body: dict[str, Any], acknowledged: Callable[[], None]) -> None:
        """Tell the gateway that something happened; ``acknowledged`` is called once it has it for good.

        Kept until then and sent again over each new connection. When 4,096 wait, the oldest is given up, counted and
        logged: the newest tell how things are, and the end of a process can be asked for. Raises
        :class:`MalformedMessage` for a body that the bus cannot carry.
        """
        self._know_own_generation()
        data = encode(Event(self._generation, self._seq + 1, topic, body))
        self._seq += 1
        if len(self._events) >= MAX_EVENTS:
            self._events.popleft()
            self.dropped_events += 1
            if self.dropped_events & (self.dropped_events - 1) == 0:  # 1, 2, 4, 8 …: it may be thousands
                log.error("events given up: the gateway acknowledges none", dropped=self.dropped_events)
        self._events.append((self._seq, data, acknowledged))
        if self._epoch:
            self._flush()

    def _know_own_generation(self) -> None:
        """It does not change; events may be published before the start."""
        if self._generation < 0:
            self._generation = self._hello().generation

    # -- receiving -----------------------------------------------------------------------------------------------------

    def _pending_events(self) -> int:
        return int(self._socket.getsockopt(_EVENTS)) if self._socket is not None else 0

    def _look(self, also: int) -> None:
        """A send may swallow the edge of the descriptor, so what it announced must be looked for afterwards."""
        if self._pending_events() & (_POLLIN | also):
            self._scheduled = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        """The descriptor is edge-triggered: read until there is nothing, but let others have their turn.

        Asking for the events costs less than an exception that says that there is nothing.
        """
        self._scheduled = True  # what is sent from here on is followed by a look at the events
        for _ in range(_BATCH):
            if self._socket is None:
                return
            try:
                frame = self._socket.recv(_NOBLOCK, copy=False)
            except zmq.Again:
                events = _POLLOUT
                break
            self._heard = time.monotonic()
            self._receive_frame(frame)
            events = self._pending_events()
            if not events & _POLLIN:
                break
        else:
            self._loop.call_soon(self._drain)
            return
        self._scheduled = False
        if events & _POLLOUT and (self._unsent or self._events):
            self._flush()

    def _receive_frame(self, frame: zmq.Frame) -> None:
        try:
            if frame.more:
                assert self._socket is not None
                self._socket.recv_multipart(_NOBLOCK)
                raise MalformedMessage("more than one frame")
            self._receive(decode(frame.bytes))
        except MalformedMessage as exc:
            self.malformed += 1
            log.warning("malformed message dropped", error=exc, count=self.malformed)
        except Exception as exc:  # one message must not keep the others from being read
            self._loop.on_error("a message of the bus", exc)

    def _receive(self, message: Message) -> None:
        if isinstance(message, Request):
            self._request(message)
        elif isinstance(message, Heartbeat):
            self._heartbeat(message)
        elif isinstance(message, Welcome):
            self._welcome(message)
        elif isinstance(message, Cancel):
            task = self._reads.get((message.epoch, message.n))
            if task is not None:
                task.cancel()
        else:
            raise MalformedMessage(f"{message.kind}: not for a worker")

    def _welcome(self, welcome: Welcome) -> None:
        """A new connection: greet, and send again what may have been lost with the old one."""
        if welcome.generation > self._generation:
            self._leave(welcome.generation)
            return
        log.debug("greeting the gateway", epoch=welcome.epoch)
        if welcome.epoch != self._epoch:
            self._epoch = welcome.epoch
            self._forget_old_gateway()
        self._unsent.appendleft((self._epoch, encode(self._hello())))
        self._sent_seq = 0
        self._flush()

    def _forget_old_gateway(self) -> None:
        """Its callers are gone: nobody waits for what they only wanted to know."""
        self._unsent = deque(entry for entry in self._unsent if entry[0] == self._epoch)
        for (epoch, _), task in list(self._reads.items()):
            if epoch != self._epoch:
                task.cancel()

    def _heartbeat(self, beat: Heartbeat) -> None:
        if beat.epoch != self._epoch or beat.generation > self._generation:
            self._refuse(beat.epoch, beat.generation)
            return
        if beat.acks:
            self._acknowledged(beat.acks)
        if beat.generation == self._generation:  # else it counts the events of a predecessor
            while self._events and self._events[0][0] <= beat.event_ack:
                self._events.popleft()[2]()
        self._send(Heartbeat(self._epoch, self._generation, [], 0))

    def _refuse(self, epoch: int, generation: int) -> None:
        """A message of another life of the gateway than the one greeted last, or one that makes us outdated."""
        if epoch != self._epoch:
            self.stale += 1
            log.debug("message of another gateway dropped", epoch=epoch, current=self._epoch)
        else:
            self._leave(generation)

    def _leave(self, generation: int) -> None:
        log.warning("a newer worker of this sandbox exists", own=self._generation, newer=generation)
        self.on_outdated()

    def _acknowledged(self, keys: list[str]) -> None:
        self._replies.ack(keys)
        self.on_acked(keys)

    # -- requests ------------------------------------------------------------------------------------------------------

    def _request(self, request: Request) -> None:
        if request.epoch != self._epoch or request.generation > self._generation:
            self._refuse(request.epoch, request.generation)
            return
        if request.acks:
            self._acknowledged(request.acks)
        identity = (request.epoch, request.n)
        if identity in self._reads:
            return  # sent again because the gateway could not know that it had arrived
        try:
            if request.deadline is not None and request.deadline <= time.monotonic():
                raise DeadlineExceeded(f"{request.op}: the deadline was over when the request arrived")
            if not self._replies.begin(request.key, request.op, request.body, lambda kept: self._answer(request, kept)):
                return
        except KuasarError as exc:
            self._answer(request, {"error": exc.to_wire()})
            return
        # At once, not in the next turn of the loop: most requests are answered without a wait.
        task = self._loop.spawn_now(self._carry_out(request), request.op)
        if not request.key and not task.done:
            self._reads[identity] = task
            timer = self._loop.call_at(request.deadline, task.cancel) if request.deadline is not None else None
            task.add_done_callback(lambda _: self._read_done(identity, task, timer))

    def _read_done(self, identity: tuple[int, int], task: Task[None], timer: Timer | None) -> None:
        del self._reads[identity]
        if timer is not None:
            timer.cancel()
        failure = task.failure()
        if isinstance(failure, Exception):
            self._loop.on_error(f"request {task.name}", failure)

    async def _carry_out(self, request: Request) -> None:
        trace = spans.begin(request.trace, "worker")
        about = {"request": request.key or f"{request.epoch:x}.{request.n}"}
        if request.op.startswith("task.") and isinstance(container := request.body.get("id"), str):
            about["container"] = container
        aio.set_about(about)
        answer = await self._do(request)
        about.clear()
        self._replies.store(request.key, answer)
        self._answer(request, answer, trace.finish() if trace is not None else None)

    async def _do(self, request: Request) -> Answer:
        try:
            with spans.span(request.op):
                return {"body": await self._handle(request)}
        except Exception as exc:
            error = wrap(exc, request.op)
            if isinstance(exc, KuasarError):
                log.info("refused", op=request.op, kind=error.kind, error=error.message)
            else:
                log.error("unexpected error", op=request.op, error=repr(exc))
            return {"error": error.to_wire()}

    def _answer(self, request: Request, answer: Answer, found: spans.Spans | None = None) -> None:
        epoch, n, own = request.epoch, request.n, self._generation
        if epoch != self._epoch:
            return  # whoever asked has died
        try:
            self._send(Reply(epoch, n, own, answer.get("body"), answer.get("error"), found))
        except MalformedMessage as exc:
            log.error("the answer cannot be sent", op=request.op, error=exc)
            self._send(Reply(epoch, n, own, None, wrap(exc, f"{request.op}: the answer").to_wire()))

    # -- sending -------------------------------------------------------------------------------------------------------

    def _send(self, message: Message) -> None:
        """Send, or keep for when the gateway reads or is back. Raises :class:`MalformedMessage`."""
        data = encode(message)
        sent = not self._unsent and self._try_send(data)
        if not sent and not isinstance(message, Heartbeat):  # of those the next one will do
            self._unsent.append((self._epoch, data))

    def _flush(self) -> None:
        """Send what waits: the greeting and answers first, then events."""
        while self._unsent:
            if not self._try_send(self._unsent[0][1]):
                return
            self._unsent.popleft()
        if self._drained is not None:
            self._drained.set_result(None)
        if self._epoch and self._events and self._events[-1][0] > self._sent_seq:
            for seq, data, _ in list(self._events):
                if seq > self._sent_seq:
                    if not self._try_send(data):
                        return
                    self._sent_seq = seq

    def _try_send(self, data: bytes) -> bool:
        if self._socket is None:
            return False
        try:
            self._socket.send(data, _NOBLOCK)
        except zmq.Again:
            # No gateway, or one that does not read; the descriptor tells when that changes.
            if not self._scheduled:
                self._look(_POLLOUT)
            return False
        if not self._scheduled:
            self._look(0)
        return True

    def _watch_silence(self) -> None:
        silent = time.monotonic() - self._heard
        if silent >= SILENCE_SECONDS:
            log.warning("no word from the gateway", seconds=round(silent))
        self._silence = self._loop.call_later(SILENCE_SECONDS, self._watch_silence)
