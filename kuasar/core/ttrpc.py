"""ttrpc, the small RPC protocol that containerd and its shims speak over unix sockets: its frames.

A frame is a header of 10 bytes (length, stream, type, flags; big-endian) and at most 4 MiB of data. A unary call is
one REQUEST frame on a stream of its own, answered by one RESPONSE frame on the same stream; streams that a client
opens are odd and only ever grow. There is no handshake, no ping and no reset: a damaged frame ends the connection.

Nothing here knows who uses it: the gateway speaks it with containerd, an agent with an engine that has a Task server.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from kuasar.core import errors

MAX_DATA = 4 << 20

_HEADER = struct.Struct(">IIBB")


class FrameType(IntEnum):
    """What a frame carries."""

    REQUEST = 1
    RESPONSE = 2
    DATA = 3


class ProtocolError(errors.KuasarError):
    """The peer sent what the protocol does not allow. `stream` is where, as far as the header told."""

    def __init__(self, message: str, *, stream: int = 0) -> None:
        super().__init__(message, stream=stream)
        self.stream = stream


@dataclass(frozen=True, slots=True)
class Header:
    """The 10 bytes in front of every frame."""

    length: int
    stream: int
    type: FrameType
    flags: int

    SIZE = _HEADER.size

    @classmethod
    def decode(cls, raw: bytes) -> Header:
        """Reads exactly `SIZE` bytes; ProtocolError for an unknown type or a length above `MAX_DATA`."""
        if len(raw) != cls.SIZE:
            raise ProtocolError(f"ttrpc header has {len(raw)} bytes, not {cls.SIZE}")
        length, stream, kind, flags = _HEADER.unpack(raw)
        if kind not in FrameType.__members__.values():
            raise ProtocolError(f"ttrpc frame on stream {stream} has unknown type {kind}", stream=stream)
        if length > MAX_DATA:
            raise ProtocolError(
                f"ttrpc frame on stream {stream} has {length} bytes, more than {MAX_DATA}", stream=stream
            )
        return cls(length, stream, FrameType(kind), flags)


def encode_frame(stream: int, kind: FrameType, data: bytes, flags: int = 0) -> bytes:
    """One whole frame. ResourceExhausted if `data` is more than a frame can hold."""
    if len(data) > MAX_DATA:
        raise errors.ResourceExhausted(f"ttrpc message of {len(data)} bytes is larger than {MAX_DATA}")
    return _HEADER.pack(len(data), stream, kind, flags) + data
