"""The zygote's protocol: one request, one reply and one go byte per connection. Data only, no sockets.

A connection (``SOCK_SEQPACKET``) makes one process::

    requester                               zygote
        | -- request (msgpack) + SCM_RIGHTS --> |   clones; the clone waits
        | <-- pid (native int) or "error: ..."  |
        |   (records the pid, cgroups)          |
        | -- "g" ------------------------------------> clone runs
        | -- end of file instead --------------------> clone exits

A request is ``{"kind", "title", "args", "flags"}``. ``kind`` says which function the clone runs; ``flags`` are the new
namespaces it gets (CLONE_NEW*, 0 for none); what the descriptors mean is a matter of the kind.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

from kuasar.core.errors import InvalidArgument

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
NAMESPACE_FLAGS = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET

MAX_REQUEST_BYTES = 64 * 1024
MAX_DESCRIPTORS = 16
MAX_TITLE_CHARS = 128
GO = b"g"
_PID = struct.Struct("=i")
_ERROR = b"error: "


@dataclass(frozen=True)
class Request:
    """A decoded request."""

    kind: str
    title: str
    args: dict[str, Any]
    flags: int = 0


def encode_request(request: Mapping[str, Any]) -> bytes:
    """The request as it travels; checked as the zygote checks it, so that a mistake is the caller's exception."""
    data: bytes = msgpack.packb(dict(request))
    decode_request(data)
    return data


def decode_request(data: bytes) -> Request:
    """Total decoder: :class:`InvalidArgument` that names the field for whatever is not a request."""
    if len(data) > MAX_REQUEST_BYTES:
        raise InvalidArgument(f"request: {len(data)} bytes, at most {MAX_REQUEST_BYTES} are allowed", field="request")
    try:
        raw = msgpack.unpackb(data)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as exc:
        raise InvalidArgument(f"request: not msgpack: {exc}", field="request") from exc
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise InvalidArgument("request: a map with string keys is needed", field="request")
    unknown = raw.keys() - {"kind", "title", "args", "flags"}
    if unknown:
        raise InvalidArgument(f"request: unknown keys {', '.join(sorted(unknown))}", field="request")
    request = Request(
        _require(raw, "kind", str), _require(raw, "title", str), _require(raw, "args", dict), raw.get("flags", 0)
    )
    if type(request.flags) is not int or request.flags & ~NAMESPACE_FLAGS:
        raise InvalidArgument(f"flags: {request.flags!r} is not a set of CLONE_NEW* flags", field="flags")
    if not request.title.isprintable() or not 0 < len(request.title) <= MAX_TITLE_CHARS:
        raise InvalidArgument(f"title: 1 to {MAX_TITLE_CHARS} printable characters are needed", field="title")
    if not all(isinstance(key, str) for key in request.args):
        raise InvalidArgument("args: a map with string keys is needed", field="args")
    return request


def _require(raw: dict[str, Any], key: str, kind: type) -> Any:
    value = raw.get(key)
    if not isinstance(value, kind):
        raise InvalidArgument(f"{key}: {kind.__name__} is needed, got {type(value).__name__}", field=key)
    return value


def encode_pid(pid: int) -> bytes:
    """The reply of success."""
    return _PID.pack(pid)


def encode_error(message: str) -> bytes:
    """The reply of failure."""
    return _ERROR + message.encode(errors="replace")[:4096]


def decode_reply(data: bytes) -> int | str:
    """The pid, or the error in words; an empty reply means that the zygote went away."""
    if len(data) == _PID.size:
        pid: int = _PID.unpack(data)[0]
        return pid if pid > 0 else f"malformed pid {pid}"
    if data.startswith(_ERROR):
        return data[len(_ERROR) :].decode(errors="replace")
    return f"malformed reply {data!r:.100}" if data else "it closed the connection"
