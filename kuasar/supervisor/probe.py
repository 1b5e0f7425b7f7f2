"""Whether the gateway answers: one small question at a time over the Task API's socket, never blocking.

A connection that the kernel accepts proves nothing, because a process that hangs has a backlog, too. So a request is
sent (ttrpc, to a service that does not exist), and only a response frame on its stream counts: the gateway's own loop
has read, looked it up, and written.

    idle --ask()--> waiting --response--> answered (told once) --> idle
                       \\--EOF, an error, ANSWER_SECONDS--> idle
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress

ANSWER_SECONDS = 5.0
"""After so long without an answer the question is put again, on a new connection."""
_HEADER = struct.Struct(">IIBB")
_REQUEST, _RESPONSE = 1, 2
_STREAM = 1


def _text(field: int, value: bytes) -> bytes:
    """A protobuf string of less than 128 bytes."""
    return bytes((field << 3 | 2, len(value))) + value


_QUESTION = _text(1, b"kuasar.Probe") + _text(2, b"Ping")
QUESTION = _HEADER.pack(len(_QUESTION), _STREAM, _REQUEST, 0) + _QUESTION
"""A ttrpc request frame."""


class GatewayProbe:
    """Asks the gateway whose sockets these are; owns at most one descriptor. Not for several threads."""

    def __init__(self, task_socket: str, gateway_socket: str) -> None:
        """``gateway_socket`` must be listened on, too: containerd's first calls go there."""
        self._task_socket = task_socket
        self._gateway_socket = gateway_socket
        self._peer: socket.socket | None = None
        self._asked = 0.0
        self._read = b""
        self.why = "not asked yet"
        """Why the last question has no answer, in words."""

    @property
    def waiting(self) -> bool:
        """Whether a question is under way."""
        return self._peer is not None

    def ask(self, now: float) -> None:
        """Put the question, if none is under way. ``now``: any clock that only goes forward, in seconds."""
        if self._peer is not None:
            return
        try:
            os.close(_connect(self._gateway_socket).detach())
            peer = _connect(self._task_socket)
        except OSError as exc:
            self.why = f"the gateway does not listen: {exc.strerror or exc}"
            return
        try:
            peer.sendall(QUESTION)
        except OSError as exc:
            peer.close()
            self.why = f"the gateway cannot be asked: {exc.strerror or exc}"
            return
        self._peer, self._asked, self._read = peer, now, b""

    def answered(self, now: float) -> bool:
        """Whether the answer has come since the last call."""
        if self._peer is None:
            return False
        try:
            data = self._peer.recv(_HEADER.size - len(self._read))
        except BlockingIOError:
            if now - self._asked > ANSWER_SECONDS:
                self._give_up(f"the gateway has not answered for {now - self._asked:.0f} s")
            return False
        except OSError as exc:
            self._give_up(f"the gateway's answer cannot be read: {exc.strerror or exc}")
            return False
        self._read += data
        if not data:
            self._give_up("the gateway hung up")
            return False
        if len(self._read) < _HEADER.size:
            return False
        _, stream, kind, _ = _HEADER.unpack(self._read)
        good = (stream, kind) == (_STREAM, _RESPONSE)
        self._give_up("" if good else f"the gateway answered with a frame of type {kind} on stream {stream}")
        return good

    def close(self) -> None:
        """Forget a question that is under way. Harmless to repeat."""
        self._give_up(self.why)

    def _give_up(self, why: str) -> None:
        self.why = why
        if self._peer is not None:
            with suppress(OSError):
                self._peer.close()
            self._peer = None


def _connect(path: str) -> socket.socket:
    """At once, or not at all: with a full backlog EAGAIN is raised."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        peer.connect(path)
    except BaseException:
        peer.close()
        raise
    return peer
