"""A netlink socket with nothing but the standard library: requests, answers and the kernel's word (netlink(7)).

What stands in a message is its user's affair: the agent packs the few that it needs, a worker has pyroute2's.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TypeVar

from kuasar.core.errors import BackendFailed

This = TypeVar("This", bound="NetlinkSocket")
TIMEOUT_SECONDS = 10.0
HEADER = struct.Struct("=IHHII")
"""length, kind, flags, sequence, port."""

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_DUMP_INTERRUPTED = 0x10
_CAPPED, _ACK_TLVS = 0x100, 0x200
_SOL_NETLINK, _NETLINK_EXT_ACK = 270, 11
_ATTRIBUTE = struct.Struct("=HH")
_KIND_MASK = 0x3FFF
_ATTRIBUTE_MESSAGE = 1
_RECEIVE_BYTES = 1 << 16  # the kernel sends at most half of it at once
_DUMP_ATTEMPTS = 5


class RefusedError(OSError):
    """The kernel said no: errno, and its own words where it has some."""


class NetlinkSocket:
    """A route socket in the network namespace of the thread that makes it; a context manager.

    A refusal is a :class:`RefusedError`; a kernel that is silent for 10 s a ``TimeoutError``.
    """

    def __init__(self) -> None:
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            self._socket.bind((0, 0))
            self._socket.settimeout(TIMEOUT_SECONDS)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self: This) -> This:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def ask(self, kind: int, flags: int, body: bytes) -> None:
        """Ask for a change and wait until it is made."""
        self._send(kind, _REQUEST | _ACK | flags, body)
        for _ in self._answers():
            pass

    def listing(self, kind: int, body: bytes) -> list[bytes]:
        """The message of each thing of a kind, without its header.

        The kernel says when things changed under a listing, so that some may be missing or stand there twice; then it
        is asked again. Raises :class:`BackendFailed` when all five listings were so.
        """
        for _ in range(_DUMP_ATTEMPTS):
            self._send(kind, _REQUEST | _DUMP, body)
            found, interrupted = [], False
            for flags, answer in self._answers():
                interrupted |= bool(flags & _DUMP_INTERRUPTED)
                found.append(answer)
            if not interrupted:
                return found
        raise BackendFailed(f"the network changes all the time: {_DUMP_ATTEMPTS} listings were interrupted")

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        self._socket.send(HEADER.pack(HEADER.size + len(body), kind, flags, self._sequence, 0) + body)

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


def encode(attributes: Mapping[int, bytes]) -> bytes:
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
    while offset + HEADER.size <= len(data):
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
        if not HEADER.size <= length <= len(data) - offset:
            return
        yield kind, flags, sequence, data[offset + HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _raise_if_refused(body: bytes, flags: int) -> None:
    if len(body) < 4:
        return
    (code,) = struct.unpack_from("=i", body)
    if code < 0:
        raise RefusedError(-code, _kernels_words(body, flags) or os.strerror(-code))


def _kernels_words(body: bytes, flags: int) -> str:
    """The text that an extended acknowledgement carries; empty if there is none."""
    if not flags & _ACK_TLVS or len(body) < 4 + HEADER.size:
        return ""
    request_length = HEADER.size if flags & _CAPPED else struct.unpack_from("=I", body, 4)[0]
    words = decode(body[4 + ((request_length + 3) & ~3) :]).get(_ATTRIBUTE_MESSAGE, b"")
    return words.rstrip(b"\0").decode(errors="replace")
