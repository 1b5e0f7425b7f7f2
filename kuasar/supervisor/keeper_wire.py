"""The keeper's protocol: one request, one reply, any number of them on a connection. Data only, no sockets.

A connection (``SOCK_SEQPACKET``) belongs to one holder of descriptors. A request is a msgpack map; ``put`` brings
descriptors by SCM_RIGHTS, the replies to ``get`` and ``accept`` bring some back::

    {"op": "put", "name", "meta"} + fds   keep duplicates under name; what was there is replaced
    {"op": "get", "name"}                 -> {"found", "meta"} + fds
    {"op": "drop", "name"}                close what is there; harmless when there is nothing
    {"op": "drop_all", "prefix"}          all names that begin with it
    {"op": "list", "prefix", "after"}     -> {"names", "more"}: in order, those behind ``after``, as many as fit
    {"op": "accept", "listener", "name"}  accept a connection on the kept socket ``listener``, keep it as ``name``
                                          -> {"found"} + its fd; not found: nobody is waiting to be accepted
    {"op": "resign"}                      a successor is here: end all other connections, listen no more
    {"op": "done"}                        the successor has everything: exit

A reply is ``{"found", "meta", "names", "more"}`` or ``{"error": map}`` (``kuasar/core/errors.py``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from kuasar.core.errors import InvalidArgument, KuasarError, Unavailable, from_wire

MAX_MESSAGE_BYTES = 64 * 1024
MAX_NAME_CHARS = 512
MAX_META_BYTES = 32 * 1024
MAX_DESCRIPTORS = 32
"""Of one name."""
_PAGE_BYTES = 48 * 1024
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9/._:@-]*[A-Za-z0-9._:@-])?")
_PREFIX = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9/._:@-]*)?")

# op -> the fields it needs; all are strings but meta
_FIELDS: dict[str, tuple[str, ...]] = {
    "put": ("name", "meta"),
    "get": ("name",),
    "drop": ("name",),
    "drop_all": ("prefix",),
    "list": ("prefix", "after"),
    "accept": ("listener", "name"),
    "resign": (),
    "done": (),
}


@dataclass(frozen=True)
class Request:
    """A decoded request; fields that its ``op`` does not have are empty."""

    op: str
    name: str = ""
    meta: bytes = b""
    prefix: str = ""
    after: str = ""
    listener: str = ""


@dataclass(frozen=True)
class Reply:
    """A decoded reply of success; what the request did not ask for is empty."""

    found: bool = False
    meta: bytes = b""
    names: tuple[str, ...] = ()
    more: bool = False


def encode_request(request: Request) -> bytes:
    """As it travels; checked as the keeper checks it, so that a mistake is the caller's exception."""
    fields = {name: getattr(request, name) for name in _FIELDS.get(request.op, ())}
    data: bytes = msgpack.packb({"op": request.op, **fields})
    decode_request(data)
    return data


def decode_request(data: bytes) -> Request:
    """Total decoder: :class:`InvalidArgument` that names the field for whatever is not a request."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise InvalidArgument(f"request: more than {MAX_MESSAGE_BYTES} bytes", field="request")
    raw = _unpack(data, "request")
    op = raw.pop("op", None)
    if not isinstance(op, str) or op not in _FIELDS:
        raise InvalidArgument(f"op: {op!r:.80} is none of {', '.join(sorted(_FIELDS))}", field="op")
    unknown = raw.keys() - set(_FIELDS[op])
    if unknown:
        raise InvalidArgument(f"{op}: unknown keys {', '.join(sorted(unknown))}", field="request")
    values = {name: _value(name, raw.get(name)) for name in _FIELDS[op]}
    return Request(op, **values)


def _value(field: str, value: Any) -> Any:
    if field == "meta":
        if not isinstance(value, bytes):
            raise InvalidArgument(f"meta: bytes are needed, got {type(value).__name__}", field="meta")
        if len(value) > MAX_META_BYTES:
            raise InvalidArgument(f"meta: {len(value)} bytes, at most {MAX_META_BYTES} are allowed", field="meta")
        return value
    if not isinstance(value, str):
        raise InvalidArgument(f"{field}: a string is needed, got {type(value).__name__}", field=field)
    if len(value) > MAX_NAME_CHARS:
        raise InvalidArgument(f"{field}: {len(value)} characters, at most {MAX_NAME_CHARS} are allowed", field=field)
    grammar = _PREFIX if field in ("prefix", "after") else _NAME
    if not grammar.fullmatch(value):
        raise InvalidArgument(
            f"{field}: {value!r} is no name (letters, digits, '.', '_', ':', '@', '-', in parts divided by '/')",
            field=field,
        )
    return value


def encode_reply(reply: Reply) -> bytes:
    """The reply of success."""
    data: bytes = msgpack.packb(
        {"found": reply.found, "meta": reply.meta, "names": list(reply.names), "more": reply.more}
    )
    return data


def encode_error(error: KuasarError) -> bytes:
    """The reply of failure."""
    data: bytes = msgpack.packb({"error": {**error.to_wire(), "message": error.message[:4096]}})
    return data


def decode_reply(data: bytes) -> Reply | KuasarError:
    """The reply, or the error that the keeper answered. Total: nonsense is an :class:`Unavailable` that shows it."""
    try:
        raw = _unpack(data, "reply")
    except InvalidArgument as exc:
        return Unavailable(f"the keeper's reply is malformed: {exc.message}")
    if "error" in raw:
        return from_wire(raw["error"])
    found, meta, names, more = (raw.get(name) for name in ("found", "meta", "names", "more"))
    if (
        not isinstance(found, bool)
        or not isinstance(meta, bytes)
        or not isinstance(names, list)
        or not all(isinstance(name, str) for name in names)
        or not isinstance(more, bool)
    ):
        return Unavailable(f"the keeper's reply is malformed: {raw!r:.200}")
    return Reply(found, meta, tuple(names), more)


def page(names: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """As many of ``names`` as fit into one reply, and whether there are more."""
    size = 0
    for index, name in enumerate(names):
        size += len(name) + 3
        if size > _PAGE_BYTES:
            return tuple(names[:index]), True
    return tuple(names), False


def _unpack(data: bytes, what: str) -> dict[str, Any]:
    try:
        raw = msgpack.unpackb(data)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as exc:
        raise InvalidArgument(f"{what}: not msgpack: {exc}", field=what) from exc
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise InvalidArgument(f"{what}: a map with string keys is needed", field=what)
    return raw
