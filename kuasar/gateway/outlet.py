"""Sends answers so that a successor knows to the byte what has been sent, also after a SIGKILL between two
instructions.

``send`` tells how much was sent to a process that may be dead by then. So nothing is sent from memory: an answer is put
into a spool (a memfd) and moved on with sendfile *without* an offset, which moves the bytes and the file's position in
one step of the kernel. The position belongs to the open file, and the keeper holds that. In front of the spool a header
says what lies at the position: connection, stream, where the piece begins and ends, and how much of the answer was sent
before it.

One spool serves all connections, because one piece is under way at a time. A new spool is begun when one is long:
places are never written twice, because sendfile hands the kernel references to the spool's pages, which the peer may
read much later.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from kuasar.core.failpoints import failpoint

_HEADER = struct.Struct("<QIIQQ")  # connection, stream, sent before, start and end of the piece in the spool
_BEGIN = 4096
_SPOOL_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """The last thing that was sent, or was about to be."""

    connection: int
    stream: int
    before: int
    """Bytes of the answer that had been sent before."""
    data: bytes
    sent: int
    """How many bytes of ``data`` the kernel has taken."""


class Outlet:
    """One per gateway. ``hand_over(fd)`` gives a new spool into custody, before it is used."""

    def __init__(self, fd: int, hand_over: Callable[[int], None]) -> None:
        """Owns ``fd``: a predecessor's spool or a :func:`new_spool`."""
        self._fd = fd
        self._hand_over = hand_over
        self._position = max(os.lseek(fd, 0, os.SEEK_CUR), _BEGIN)

    def fileno(self) -> int:
        """The spool; ours."""
        return self._fd

    def last_piece(self) -> Piece | None:
        """What the predecessor was sending when it died, or had sent last."""
        raw = os.pread(self._fd, _HEADER.size, 0)
        if len(raw) < _HEADER.size:
            return None
        connection, stream, before, start, end = _HEADER.unpack(raw)
        return Piece(connection, stream, before, os.pread(self._fd, end - start, start), self._position - start)

    def send(self, connection: int, stream: int, peer: socket.socket, data: bytes, before: int = 0) -> int:
        """Send as much of ``data`` as the peer's buffer takes, and give how much that is.

        ``connection`` and ``stream`` say whose answer it is, ``before`` how much of it went earlier. Raises ``OSError``
        when the peer is gone.
        """
        if self._position > _SPOOL_BYTES:
            self._renew()
        start = self._position
        end = start + len(data)
        _write_all(self._fd, data, start)
        # Less than a page: it is written as a whole or not at all. Until then the header of the piece before is true.
        os.pwrite(self._fd, _HEADER.pack(connection, stream, before, start, end), 0)
        failpoint("gateway.answer.placed")
        try:
            while self._position < end:
                moved = os.sendfile(peer.fileno(), self._fd, None, end - self._position)
                if not moved:
                    break
                self._position += moved
        except BlockingIOError:
            pass
        failpoint("gateway.answer.sent")
        return self._position - start

    def close(self) -> None:
        """Leave the spool to a successor. Harmless to repeat."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _renew(self) -> None:
        fd = new_spool()
        self._hand_over(fd)
        os.close(self._fd)
        self._fd, self._position = fd, _BEGIN


def new_spool() -> int:
    """A spool in which nothing is; the caller owns it."""
    fd = os.memfd_create("kuasar-answers", os.MFD_CLOEXEC)
    os.lseek(fd, _BEGIN, os.SEEK_SET)
    return fd


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
