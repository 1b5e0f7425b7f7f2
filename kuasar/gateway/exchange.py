"""What one ttrpc connection still owes: received and unanswered requests, unsent answers. As a log of records; no I/O.

`Exchange` is the state, a record is one change of it. The gateway writes each record down before it acts on it
(`connection_log.py`), so that a successor gets the same state by replaying them. A record is its length, its kind and
what belongs to the kind; a torn one at the end of a log was never acted on and is cut off.

    request:  received --begun--> unanswered --+--> answered                    (the whole answer was sent)
                                               '--> unsent --sent in parts--> answered
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from kuasar.core.errors import KuasarError
from kuasar.core.ttrpc import FrameType, Header, ProtocolError, encode_frame

_HEAD = struct.Struct("<IB")  # length of what follows, kind
_BASE = struct.Struct("<QI")
_AT = struct.Struct("<Q")
_STREAM = struct.Struct("<I")
_POSITION = struct.Struct("<II")


class DamagedLog(KuasarError):
    """A log that no gateway of ours has written like this."""


class Kind(IntEnum):
    """What a record says."""

    BASE = 1
    """The log begins here: bytes received so far, last stream."""
    RECEIVED = 2
    """Bytes that arrived: when, and which."""
    REQUEST = 3
    """A request that arrived before the base: when, and its frame."""
    ANSWERED = 4
    """A stream whose answer has been sent as a whole."""
    UNSENT = 5
    """An answer that could not be sent yet: stream, bytes of it that were, the whole frame."""
    PROGRESS = 6
    """More of an unsent answer has been sent: stream, bytes of it so far."""
    BOUND = 7
    """The sandbox that a container is in: both names, divided by a zero byte."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A request that is written down."""

    stream: int
    payload: bytes
    at: int
    """When it arrived, in nanoseconds of CLOCK_MONOTONIC."""


@dataclass(slots=True)
class Unsent:
    """An answer that waits for the peer to read."""

    frame: bytes
    sent: int


class Exchange:
    """The state of one connection."""

    def __init__(self) -> None:
        self.received = 0
        """Bytes since the connection was made."""
        self.last_stream = 0
        self.requests: dict[int, Recorded] = {}
        """Unanswered, by stream."""
        self.unsent: dict[int, Unsent] = {}
        """By stream, in the order in which they are to be sent. Only the first may have been sent in part."""
        self.bound: dict[str, str] = {}
        """Container (``namespace/id``) to sandbox, as far as it has been looked up for this connection."""
        self._partial = bytearray()

    @property
    def size(self) -> int:
        """About how many bytes a log of nothing but this state has."""
        requests = sum(len(request.payload) for request in self.requests.values())
        return requests + sum(len(answer.frame) for answer in self.unsent.values()) + len(self._partial) + 1024

    def receive(self, data: bytes, at: int) -> list[Recorded]:
        """Bytes have arrived; gives the requests that are whole now. Raises :class:`ProtocolError`."""
        self.received += len(data)
        self._partial += data
        fresh: list[Recorded] = []
        while len(self._partial) >= Header.SIZE:
            header = Header.decode(bytes(self._partial[: Header.SIZE]))
            if header.type is not FrameType.REQUEST:
                raise ProtocolError(
                    f"a frame of type {header.type.name}: only unary calls are served", stream=header.stream
                )
            if header.stream % 2 == 0 or header.stream <= self.last_stream:
                raise ProtocolError(f"stream {header.stream} after {self.last_stream}", stream=header.stream)
            end = Header.SIZE + header.length
            if len(self._partial) < end:
                break
            request = Recorded(header.stream, bytes(self._partial[Header.SIZE : end]), at)
            del self._partial[:end]
            self.last_stream = header.stream
            self.requests[header.stream] = request
            fresh.append(request)
        return fresh

    def answered(self, stream: int) -> None:
        """The answer has been sent. Harmless to repeat."""
        self.requests.pop(stream, None)
        self.unsent.pop(stream, None)

    def keep(self, stream: int, frame: bytes, sent: int) -> None:
        """The answer is there, but only its first ``sent`` bytes could be sent."""
        self.requests.pop(stream, None)
        self.unsent[stream] = Unsent(frame, sent)

    def progress(self, stream: int, sent: int) -> None:
        """``sent`` bytes of an unsent answer have been sent by now. Unknown streams have been answered."""
        if answer := self.unsent.get(stream):
            answer.sent = sent

    def apply(self, kind: int, body: bytes) -> None:
        """What a record says. Raises :class:`DamagedLog`, and :class:`ProtocolError` if the peer had sent nonsense."""
        try:
            match kind:
                case Kind.BASE:
                    self.received, self.last_stream = _BASE.unpack(body)
                case Kind.RECEIVED:
                    self.receive(body[_AT.size :], _AT.unpack_from(body)[0])
                case Kind.REQUEST:
                    stream = Header.decode(body[_AT.size : _AT.size + Header.SIZE]).stream
                    payload = body[_AT.size + Header.SIZE :]
                    self.requests[stream] = Recorded(stream, payload, _AT.unpack_from(body)[0])
                case Kind.ANSWERED:
                    self.answered(_STREAM.unpack(body)[0])
                case Kind.UNSENT:
                    stream, sent = _POSITION.unpack_from(body)
                    self.keep(stream, body[_POSITION.size :], sent)
                case Kind.PROGRESS:
                    self.progress(*_POSITION.unpack(body))
                case Kind.BOUND:
                    container, sandbox = body.decode().split("\0")
                    self.bound[container] = sandbox
                case _:
                    raise DamagedLog(f"unknown record {kind}")
        except (struct.error, ValueError) as exc:
            raise DamagedLog(f"malformed record {kind}: {exc}") from exc

    def snapshot(self) -> bytes:
        """The shortest log that leads to this state."""
        records = [base(self.received - len(self._partial), self.last_stream)]
        records += [bound(container, sandbox) for container, sandbox in self.bound.items()]
        records += [_request(request) for request in self.requests.values()]
        records += [unsent(stream, answer.frame, answer.sent) for stream, answer in self.unsent.items()]
        if self._partial:
            records.append(received(bytes(self._partial), 0))
        return b"".join(records)


def replay(log: bytes) -> tuple[Exchange, int]:
    """The state that ``log`` leads to, and how many bytes of it are whole records."""
    exchange, size = Exchange(), 0
    for kind, body, end in _records(log):
        exchange.apply(kind, body)
        size = end
    return exchange, size


def _records(log: bytes) -> Iterator[tuple[int, bytes, int]]:
    start = 0
    while start + _HEAD.size <= len(log):
        length, kind = _HEAD.unpack_from(log, start)
        begin = start + _HEAD.size
        start = begin + length
        if start > len(log):
            return
        yield kind, log[begin:start], start


def base(received_: int, last_stream: int) -> bytes:
    """A BASE record."""
    return _record(Kind.BASE, _BASE.pack(received_, last_stream))


def received(data: bytes, at: int) -> bytes:
    """A RECEIVED record."""
    return _record(Kind.RECEIVED, _AT.pack(at) + data)


def answered(stream: int) -> bytes:
    """An ANSWERED record."""
    return _record(Kind.ANSWERED, _STREAM.pack(stream))


def unsent(stream: int, frame: bytes, sent: int) -> bytes:
    """An UNSENT record."""
    return _record(Kind.UNSENT, _POSITION.pack(stream, sent) + frame)


def progress(stream: int, sent: int) -> bytes:
    """A PROGRESS record."""
    return _record(Kind.PROGRESS, _POSITION.pack(stream, sent))


def bound(container: str, sandbox: str) -> bytes:
    """A BOUND record."""
    return _record(Kind.BOUND, f"{container}\0{sandbox}".encode())


def _request(request: Recorded) -> bytes:
    return _record(
        Kind.REQUEST, _AT.pack(request.at) + encode_frame(request.stream, FrameType.REQUEST, request.payload)
    )


def _record(kind: Kind, body: bytes) -> bytes:
    return _HEAD.pack(len(body), kind) + body
