"""The frames of the agent protocol as frozen types, with their one encoder and their one total decoder.

The specification is docs/agent-protocol.md. Pure: no descriptors, no loop; both ends use it (``agent/channel.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import msgpack

VERSION = 2
TRACE = "trace"
"""Capability of an agent that takes ``trace`` and gives ``spans``: one that was started before there were traces would
hang up."""
COMMANDS = "commands"
"""Capability of an agent that has the :data:`COMMAND_OPERATIONS`."""
COMMAND_OPERATIONS = tuple(f"command.{name}" for name in ("start", "wait", "kill", "resize", "close_io", "delete"))
MAX_FRAME_BYTES = 16 * 1024 * 1024
STREAM = "stream:"
"""What ``task.create`` and ``task.exec`` get instead of a path for a stream that goes over the channel."""
MAX_DATA_BYTES = 64 * 1024
"""What one data frame carries at most."""
MAX_OFFSET = 1 << 60
"""No stream is longer; anything may be added to an offset without thinking of overflows."""
WINDOW_BYTES = 256 * 1024
"""How far a sender may be ahead of what its receiver has passed on, and how much it keeps itself."""
LAST_BYTES = WINDOW_BYTES + 64 * 1024 + 1
"""How much of a dead process may go beyond the limit of its stream: a full ring, a full pipe, and the one byte that has
to be asked for to see that there is none."""
_HEADER = 4
_DATA_KEY = b"\xa4data\xc6"  # the string "data", and the head of binary data with four bytes of length


class MalformedFrame(Exception):
    """Bytes that are no frame of this version; the text says what is wrong. Their connection is of no more use."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The agent introduces itself on every new connection. ``instance`` is random per life of an agent."""

    kind: ClassVar[str] = "hello"
    version: int
    instance: str
    pid: int
    driver: str
    capabilities: list[str]
    containers: list[str]


@dataclass(frozen=True, slots=True)
class Request:
    """The worker asks for ``op``; ``timeout`` is in seconds from the moment the agent reads it (the clocks of a guest
    and its host differ), None: without end. ``trace`` is the context of a traced one, for agents that can
    (:data:`TRACE`)."""

    kind: ClassVar[str] = "request"
    n: int
    key: str
    op: str
    body: dict[str, Any]
    timeout: float | None = None
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to request ``n``: exactly one of ``body`` and ``error``; ``spans`` of a traced one."""

    kind: ClassVar[str] = "reply"
    n: int
    body: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    spans: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened; kept by the agent until acknowledged. ``seq`` counts from 1 within an instance."""

    kind: ClassVar[str] = "event"
    seq: int
    topic: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ack:
    """The worker needs these kept answers no longer, nor any event up to and including ``event``."""

    kind: ClassVar[str] = "ack"
    keys: list[str]
    event: int


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of a stream, the first of them at ``offset``; with ``end`` nothing comes after them. Without bytes and end
    it asks for a window."""

    kind: ClassVar[str] = "data"
    stream: str
    offset: int
    data: bytes | memoryview
    end: bool = False


@dataclass(frozen=True, slots=True)
class Window:
    """The receiver of a stream has everything before ``taken`` for good (the end counts as one more), and takes what
    is before ``limit``."""

    kind: ClassVar[str] = "window"
    stream: str
    taken: int
    limit: int


Frame = Hello | Request | Reply | Event | Ack | Data | Window

_INT, _STR, _STRINGS, _MAP, _SECONDS = (int,), (str,), (list,), (dict,), (float, int)
# kind -> field -> (accepted exact types, may be absent or nil)
_FIELDS: dict[str, dict[str, tuple[tuple[type, ...], bool]]] = {
    "hello": {
        "version": (_INT, False),
        "instance": (_STR, False),
        "pid": (_INT, False),
        "driver": (_STR, False),
        "capabilities": (_STRINGS, False),
        "containers": (_STRINGS, False),
    },
    "request": {
        "n": (_INT, False),
        "key": (_STR, False),
        "op": (_STR, False),
        "body": (_MAP, False),
        "timeout": (_SECONDS, True),
        "trace": (_STR, True),
    },
    "reply": {"n": (_INT, False), "body": (_MAP, True), "error": (_MAP, True), "spans": (_MAP, True)},
    "event": {"seq": (_INT, False), "topic": (_STR, False), "body": (_MAP, False)},
    "ack": {"keys": (_STRINGS, False), "event": (_INT, False)},
    "data": {"stream": (_STR, False), "offset": (_INT, False), "data": ((bytes,), False), "end": ((bool,), False)},
    "window": {"stream": (_STR, False), "taken": (_INT, False), "limit": (_INT, False)},
}
_TYPES: dict[str, type[Any]] = {cls.kind: cls for cls in (Hello, Request, Reply, Event, Ack, Data, Window)}


def encode(frame: Frame) -> bytes:
    """The frame with its length in front. Raises :class:`MalformedFrame` for what the stream cannot carry."""
    if isinstance(frame, Data):
        return b"".join(encode_data(frame))
    wire: dict[str, Any] = {"k": frame.kind}
    for name in _FIELDS[frame.kind]:
        value = getattr(frame, name)
        if value is not None:
            wire[name] = value
    try:
        data = bytes(msgpack.packb(wire))
    except (ValueError, TypeError, OverflowError, RecursionError) as exc:
        raise MalformedFrame(f"{frame.kind}: cannot be encoded: {exc}") from exc
    if len(data) > MAX_FRAME_BYTES:
        raise MalformedFrame(f"{frame.kind} of {len(data)} bytes: a frame carries at most {MAX_FRAME_BYTES}")
    return len(data).to_bytes(_HEADER, "big") + data


def encode_data(frame: Data) -> tuple[bytes, bytes | memoryview]:
    """The same for a data frame, in two parts: everything else, and its bytes, which are not copied."""
    size = len(frame.data)
    if size > MAX_DATA_BYTES:
        raise MalformedFrame(f"data of {size} bytes: a frame carries at most {MAX_DATA_BYTES}")
    head = bytearray(msgpack.packb({"k": "data", "stream": frame.stream, "offset": frame.offset, "end": frame.end}))
    head[0] += 1  # one more entry in the map, which follows
    head += _DATA_KEY + size.to_bytes(4, "big")
    return (len(head) + size).to_bytes(_HEADER, "big") + bytes(head), frame.data


def decode(data: bytes | bytearray | memoryview) -> Frame:
    """The frame in ``data`` (without its length). Total: whatever the bytes, a frame or :class:`MalformedFrame`."""
    try:
        wire = msgpack.unpackb(data)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as exc:
        raise MalformedFrame(f"not msgpack: {exc}") from exc
    if not isinstance(wire, dict):
        raise MalformedFrame(f"a map is needed, got {type(wire).__name__}")
    kind = wire.pop("k", None)
    fields = _FIELDS.get(kind) if isinstance(kind, str) else None
    if fields is None:
        raise MalformedFrame(f"unknown kind {kind!r:.80}")
    values: dict[str, Any] = {}
    for name, (types, optional) in fields.items():
        value = wire.pop(name, None)
        if value is None and optional:
            continue
        if type(value) not in types:
            raise MalformedFrame(f"{kind}: {name} is missing or wrong: {type(value).__name__}")
        values[name] = value
    if wire:
        raise MalformedFrame(f"{kind}: unknown keys {', '.join(sorted(map(str, wire))):.200}")
    _check_parts(kind, values)
    frame: Frame = _TYPES[kind](**values)
    return frame


def _check_parts(kind: str, values: dict[str, Any]) -> None:
    """What the types of the fields do not say: lists of strings, maps by strings, counters that count."""
    for name, value in values.items():
        if type(value) is list and not all(type(item) is str for item in value):
            raise MalformedFrame(f"{kind}: {name} must hold strings")
        if type(value) is dict and not all(type(key) is str for key in value):
            raise MalformedFrame(f"{kind}: keys of {name} must be strings")
        if type(value) is int and value < 0:
            raise MalformedFrame(f"{kind}: {name} is negative")
    timeout = values.get("timeout")
    if timeout is not None and not 0 <= timeout < float("inf"):
        raise MalformedFrame(f"{kind}: timeout is {timeout}")
    if kind in ("data", "window"):
        for name in ("offset", "taken", "limit"):
            if values.get(name, 0) > MAX_OFFSET:
                raise MalformedFrame(f"{kind}: {name} is {values[name]}, no stream is longer than {MAX_OFFSET}")
    if kind == "data" and len(values["data"]) > MAX_DATA_BYTES:
        raise MalformedFrame(f"data: {len(values['data'])} bytes, at most {MAX_DATA_BYTES} are allowed")
    if kind == "reply" and ("body" in values) == ("error" in values):
        raise MalformedFrame("reply: exactly one of body and error is needed")


class FrameReader:
    """Cuts a byte stream into frames, however it arrives. Holds at most one incomplete frame.

    After a :class:`MalformedFrame` the stream cannot be followed any more and the reader must be thrown away.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._needed = _HEADER
        """How many bytes the buffer must hold before it is worth a look."""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Add ``data`` and yield every frame that is complete now."""
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._needed:
                return
            data, self._buffer = bytes(self._buffer), bytearray()
        at, view = 0, memoryview(data)
        self._needed = _HEADER
        while len(data) - at >= _HEADER:
            size = int.from_bytes(view[at : at + _HEADER], "big")
            if size > MAX_FRAME_BYTES:
                raise MalformedFrame(f"a frame of {size} bytes is announced, at most {MAX_FRAME_BYTES} are allowed")
            end = at + _HEADER + size
            if len(data) < end:
                self._needed = end - at
                break
            yield decode(view[at + _HEADER : end])
            at = end
        self._buffer += view[at:]
