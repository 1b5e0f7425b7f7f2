"""The messages of the bus as frozen types, with their one encoder and their one total decoder (docs/bus.md)."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import Any, ClassVar

import msgpack

from kuasar.core.errors import InvalidArgument
from kuasar.core.ids import require_id

VERSION = 1
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_MAX_PID = 1 << 22


class MalformedMessage(Exception):
    """What is no message of this version, or cannot become one; the text says why. Drop it and go on."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """The gateway's answer to the probe of a new connection: who it is, and the generation of the living worker it
    knows (0: none). The worker answers with :class:`Hello`, or leaves if it is outdated."""

    kind: ClassVar[str] = "welcome"
    epoch: int
    generation: int


@dataclass(frozen=True, slots=True)
class Hello:
    """A worker introduces itself, over each new connection."""

    kind: ClassVar[str] = "hello"
    sandbox: str
    namespace: str
    engine: str
    sandboxer: str
    instance: str
    generation: int
    pid: int
    state: str
    containers: list[str]


@dataclass(frozen=True, slots=True)
class Request:
    """The gateway asks a worker to do ``op``. ``deadline`` is in seconds of this host's CLOCK_MONOTONIC."""

    kind: ClassVar[str] = "request"
    epoch: int
    n: int
    key: str
    op: str
    body: dict[str, Any]
    deadline: float | None
    generation: int
    acks: list[str]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for the answer to an unkeyed request any more."""

    kind: ClassVar[str] = "cancel"
    epoch: int
    n: int


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request: exactly one of ``body`` and ``error``."""

    kind: ClassVar[str] = "reply"
    epoch: int
    n: int
    generation: int
    body: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened in a sandbox; kept by the worker until acknowledged."""

    kind: ClassVar[str] = "event"
    generation: int
    seq: int
    topic: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life that carries acknowledgements. ``event_ack`` counts only for a worker of ``generation``."""

    kind: ClassVar[str] = "heartbeat"
    epoch: int
    generation: int
    acks: list[str]
    event_ack: int


Message = Welcome | Hello | Request | Cancel | Reply | Event | Heartbeat


def routing_id(sandbox: str, instance: str) -> bytes:
    """The name of one worker process on the bus."""
    return f"{sandbox}@{instance}".encode("ascii")


def sandbox_of(routing_id: bytes) -> str:
    """The sandbox whose worker has this name. Raises :class:`MalformedMessage` for what is no such name."""
    sandbox, _, instance = routing_id.decode("ascii", errors="replace").partition("@")
    try:
        require_id(instance, "instance")
        return require_id(sandbox, "sandbox")
    except InvalidArgument as exc:
        raise MalformedMessage(f"the peer's name is not <sandbox>@<instance>: {exc}") from exc


def encode(message: Message) -> bytes:
    """One frame. Raises :class:`MalformedMessage` for what msgpack or the bus cannot carry."""
    wire: dict[str, Any] = {"v": VERSION, "k": message.kind}
    for name, optional in _FIELDS[type(message)].items():
        value = getattr(message, name)
        if value is not None or not optional[1]:
            wire[name] = value
    try:
        data: bytes = msgpack.packb(wire)
    except (ValueError, TypeError, OverflowError) as exc:
        raise MalformedMessage(f"{message.kind}: {exc}") from exc
    if len(data) > MAX_MESSAGE_BYTES:
        raise MalformedMessage(f"{message.kind} of {len(data)} bytes: the bus carries at most {MAX_MESSAGE_BYTES}")
    return data


def decode(data: bytes) -> Message:
    """The message in one frame. Total: whatever the bytes, a message or :class:`MalformedMessage`."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise MalformedMessage(f"{len(data)} bytes: the bus carries at most {MAX_MESSAGE_BYTES}")
    try:
        wire = msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException, RecursionError) as exc:
        raise MalformedMessage(f"not msgpack: {exc}") from exc
    if not isinstance(wire, dict):
        raise MalformedMessage(f"a map is needed, got {type(wire).__name__}")
    version = wire.get("v")
    if type(version) is not int or version != VERSION:
        raise MalformedMessage(f"version {version!r:.80}, this side speaks {VERSION}")
    kind = wire.get("k")
    cls = _KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise MalformedMessage(f"unknown kind {kind!r:.80}")
    return _build(cls, wire)


def _build(cls: type[Any], wire: dict[Any, Any]) -> Message:
    fields = _FIELDS[cls]
    values: dict[str, Any] = {}
    for name, (types, optional) in fields.items():
        value = wire.get(name)
        if value is None and optional:
            continue
        if name not in wire:
            raise MalformedMessage(f"{cls.kind}: {name} is missing")
        if type(value) not in types:
            raise MalformedMessage(f"{cls.kind}: {name} is {type(value).__name__}")
        values[name] = value
    if len(wire) - 2 != sum(name in wire for name in fields):
        unknown = sorted(str(key) for key in wire if key not in fields and key not in ("v", "k"))
        raise MalformedMessage(f"{cls.kind}: unknown keys {', '.join(unknown):.200}")
    _check_parts(cls, values)
    if cls is Request:
        values.setdefault("deadline", None)
    message: Message = cls(**values)
    return message


def _check_parts(cls: type[Any], values: dict[str, Any]) -> None:
    """What the top-level types do not say: lists of strings, counters that count, exactly one answer."""
    for name in ("acks", "containers"):
        if name in values and not all(type(item) is str for item in values[name]):
            raise MalformedMessage(f"{cls.kind}: {name} must hold strings")
    for name in ("body", "error"):
        if name in values and not all(type(key) is str for key in values[name]):
            raise MalformedMessage(f"{cls.kind}: keys of {name} must be strings")
    for name in ("epoch", "n", "generation", "seq", "event_ack", "pid"):
        if values.get(name, 0) < 0:
            raise MalformedMessage(f"{cls.kind}: {name} is negative")
    if values.get("pid", 0) > _MAX_PID:
        raise MalformedMessage(f"{cls.kind}: pid is more than {_MAX_PID}")
    if not math.isfinite(values.get("deadline", 0.0)):
        raise MalformedMessage(f"{cls.kind}: deadline is not a time")
    if cls is Reply and ("body" in values) == ("error" in values):
        raise MalformedMessage("reply: exactly one of body and error is needed")


def _types_of(hint: Any) -> tuple[tuple[type[Any], ...], bool]:
    """(accepted exact types, may be absent) of a field's annotation. An int will do where a float is asked for."""
    args = [arg for arg in typing.get_args(hint) if typing.get_origin(hint) not in (list, dict)] or [hint]
    plain = tuple(typing.get_origin(arg) or arg for arg in args if arg is not type(None))
    if float in plain:
        plain += (int,)
    return plain, type(None) in args


_KINDS: dict[str, type[Any]] = {cls.kind: cls for cls in typing.get_args(Message)}
_FIELDS: dict[type[Any], dict[str, tuple[tuple[type[Any], ...], bool]]] = {
    cls: {f.name: _types_of(typing.get_type_hints(cls)[f.name]) for f in dataclasses.fields(cls)}
    for cls in _KINDS.values()
}
