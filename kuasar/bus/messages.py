"""The messages of the bus as frozen types, with their one encoder and their one total decoder (docs/bus.md)."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable
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
    """The gateway asks a worker to do ``op``. ``deadline`` is in seconds of this host's CLOCK_MONOTONIC, ``trace`` the
    context of a traced request."""

    kind: ClassVar[str] = "request"
    epoch: int
    n: int
    key: str
    op: str
    body: dict[str, Any]
    deadline: float | None
    generation: int
    acks: list[str]
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for the answer to an unkeyed request any more."""

    kind: ClassVar[str] = "cancel"
    epoch: int
    n: int


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request: exactly one of ``body`` and ``error``; ``spans`` of a traced one."""

    kind: ClassVar[str] = "reply"
    epoch: int
    n: int
    generation: int
    body: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    spans: dict[str, Any] | None = None


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
    for field in _FIELDS[message.kind]:
        value = getattr(message, field.name)
        if value is not None or not field.optional:
            wire[field.name] = value
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
    if type(wire) is not dict:
        raise MalformedMessage(f"a map is needed, got {type(wire).__name__}")
    version = wire.pop("v", None)
    if type(version) is not int or version != VERSION:
        raise MalformedMessage(f"version {version!r:.80}, this side speaks {VERSION}")
    kind = wire.pop("k", None)
    fields = _FIELDS.get(kind) if type(kind) is str else None
    if fields is None:
        raise MalformedMessage(f"unknown kind {kind!r:.80}")
    values = []
    take = wire.pop
    for name, types, optional, check in fields:
        value = take(name, _ABSENT)
        if type(value) in types:
            if types is _INT:  # the most frequent check, without a call
                if value < 0:
                    raise MalformedMessage(f"{kind}: {name} is negative")
            elif check is not None and (wrong := check(value)):
                raise MalformedMessage(f"{kind}: {name} {wrong}")
        elif optional and (value is None or value is _ABSENT):
            value = None
        else:
            wrong = "is missing" if value is _ABSENT else f"is {type(value).__name__}"
            raise MalformedMessage(f"{kind}: {name} {wrong}")
        values.append(value)
    if wire:
        raise MalformedMessage(f"{kind}: unknown keys {', '.join(sorted(map(str, wire))):.200}")
    message: Message = _KINDS[kind](*values)
    if type(message) is Reply and (message.body is None) == (message.error is None):
        raise MalformedMessage("reply: exactly one of body and error is needed")
    return message


class _Field(typing.NamedTuple):
    """What is known of a field from its annotation."""

    name: str
    types: tuple[type[Any], ...]
    """Accepted exact types: True is no int."""
    optional: bool
    check: Callable[[Any], str] | None
    """What is wrong with a value of these types; empty if nothing."""


def _check_pid(value: int) -> str:
    return f"is not between 0 and {_MAX_PID}" if not 0 <= value <= _MAX_PID else ""


def _check_time(value: float) -> str:
    return "" if math.isfinite(value) else "is not a time"


def _check_strings(value: list[Any]) -> str:
    for item in value:
        if type(item) is not str:
            return "must hold strings"
    return ""


def _check_keys(value: dict[Any, Any]) -> str:
    for key in value:
        if type(key) is not str:
            return "must have strings as keys"
    return ""


_CHECKS: dict[type[Any], Callable[[Any], str] | None] = {
    str: None,
    int: None,
    float: _check_time,
    list: _check_strings,
    dict: _check_keys,
}


def _field_of(name: str, hint: Any) -> _Field:
    optional = type(None) in typing.get_args(hint)
    (plain,) = [arg for arg in typing.get_args(hint) if arg is not type(None)] if optional else [hint]
    exact = typing.get_origin(plain) or plain
    if name == "pid":
        return _Field(name, (exact,), optional, _check_pid)
    types = _INT if exact is int else _NUMBER if exact is float else (exact,)
    return _Field(name, types, optional, _CHECKS[exact])


_INT = (int,)
_NUMBER = (float, int)  # an int will do where a float is asked for
_ABSENT = object()
_KINDS: dict[str, type[Any]] = {cls.kind: cls for cls in typing.get_args(Message)}
_FIELDS: dict[str, list[_Field]] = {
    kind: [_field_of(f.name, typing.get_type_hints(cls)[f.name]) for f in dataclasses.fields(cls)]
    for kind, cls in _KINDS.items()
}
