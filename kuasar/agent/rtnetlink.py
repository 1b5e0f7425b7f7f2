"""rtnetlink with nothing but the standard library: what the agent needs to set up the network inside.

A message is a fixed part and attributes; :class:`Rtnetlink` sends requests and waits for the kernel's word. Calls do
not block noticeably: the kernel answers netlink requests at once.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Mapping
from types import TracebackType

NEWLINK, GETLINK = 16, 18
NEWADDR, GETADDR = 20, 22
NEWROUTE, GETROUTE = 24, 26
NEWNEIGH, GETNEIGH = 28, 30

REPLACE, EXCLUSIVE, CREATE, APPEND = 0x100, 0x200, 0x400, 0x800
NESTED = 0x8000
GROUP_LINK = 1

LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst length, src length, tos, table, protocol, scope, type, flags
NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_DUMP_INTERRUPTED = 0x10
_CAPPED, _ACK_TLVS = 0x100, 0x200
_SOL_NETLINK, _NETLINK_EXT_ACK = 270, 11
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_KIND_MASK = 0x3FFF
_ATTRIBUTE_MESSAGE = 1
_RECEIVE_BYTES = 1 << 16  # the kernel sends at most half of it at once
_TIMEOUT_SECONDS = 10.0
_DUMP_ATTEMPTS = 5

Attributes = Mapping[int, bytes]


class Rtnetlink:
    """A socket in the network namespace of its maker; a context manager.

    A refusal is an ``OSError`` with the kernel's errno, and its own words where it has some.
    """

    def __init__(self) -> None:
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            self._socket.bind((0, 0))
            self._socket.settimeout(_TIMEOUT_SECONDS)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Rtnetlink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def change(self, kind: int, flags: int, fixed: bytes, attributes: Attributes) -> None:
        """Ask for a change and wait until it is made."""
        self._send(kind, _REQUEST | _ACK | flags, fixed + encode(attributes))
        for _ in self._answers():
            pass

    def dump(self, kind: int, fixed: struct.Struct) -> list[tuple[tuple[int, ...], dict[int, bytes]]]:
        """All things of a kind: (fields of the fixed part, attributes) of each."""
        for _ in range(_DUMP_ATTEMPTS):
            self._send(kind, _REQUEST | _DUMP, bytes(fixed.size))
            found, interrupted = [], False
            for flags, body in self._answers():
                interrupted |= bool(flags & _DUMP_INTERRUPTED)
                if len(body) >= fixed.size:
                    found.append((fixed.unpack_from(body), decode(body[fixed.size :])))
            if not interrupted:
                break
        return found

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body)

    def _answers(self) -> Iterator[tuple[int, bytes]]:
        """(flags, body) of each answer to the last request, up to its end."""
        while True:
            for kind, flags, sequence, body in messages(self._socket.recv(_RECEIVE_BYTES)):
                if sequence != self._sequence:
                    continue
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    _raise_if_refused(body, flags)
                    return
                yield flags, body


def encode(attributes: Attributes) -> bytes:
    """Attributes one after another, each padded to four bytes."""
    parts = []
    for kind, value in attributes.items():
        parts.append(_ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind))
        parts.append(value + bytes(-len(value) % 4))
    return b"".join(parts)


def decode(data: bytes) -> dict[int, bytes]:
    """Total: a damaged rest is left out."""
    found = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if not _ATTRIBUTE.size <= length <= len(data) - offset:
            break
        found[kind & _KIND_MASK] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(kind, flags, sequence, body) of each message in a datagram. Total: a damaged rest is left out."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if not _HEADER.size <= length <= len(data) - offset:
            return
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def u32(value: int) -> bytes:
    """An attribute's 32 bits."""
    return struct.pack("=I", value)


def text(value: str) -> bytes:
    """An attribute's string."""
    return value.encode() + b"\0"


def open_link_events() -> socket.socket:
    """A non-blocking socket that becomes readable whenever an interface comes, changes or goes. The caller closes."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    try:
        sock.bind((0, GROUP_LINK))
    except BaseException:
        sock.close()
        raise
    return sock


def _raise_if_refused(body: bytes, flags: int) -> None:
    if len(body) < 4:
        return
    (code,) = struct.unpack_from("=i", body)
    if code < 0:
        raise OSError(-code, _kernels_words(body, flags) or os.strerror(-code))


def _kernels_words(body: bytes, flags: int) -> str:
    """The text that an extended acknowledgement carries; empty if there is none."""
    if not flags & _ACK_TLVS or len(body) < 4 + _HEADER.size:
        return ""
    request_length = _HEADER.size if flags & _CAPPED else struct.unpack_from("=I", body, 4)[0]
    words = decode(body[4 + ((request_length + 3) & ~3) :]).get(_ATTRIBUTE_MESSAGE, b"")
    return words.rstrip(b"\0").decode(errors="replace")
