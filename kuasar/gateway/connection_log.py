"""The log of one ttrpc connection: a file on tmpfs that outlives the gateway, and the exact way into it.

The file is `<journal>/<connection id in hex>`: eight bytes that say how many bytes have been consumed from the socket,
then the records of `exchange.py`. Owned by one gateway, which holds the gateway's lock; a successor opens it and goes
on.

Bytes go from the socket into the log so that a SIGKILL at any instruction neither loses nor doubles one. The socket has
SO_PEEK_OFF set: looking (MSG_PEEK) moves an offset *in the kernel's socket* forward, consuming moves it back. So:

    1. look at what is there          socket: n looked at        log: r received, c consumed, r = c
    2. write a RECEIVED record        socket: n looked at        log: r + n received, c consumed
    3. consume n bytes                socket: 0 looked at        log: r + n received, c consumed
    4. write down that r = c          socket: 0 looked at        log: r + n received, r + n consumed

A successor that finds r = c lets the socket forget what was looked at; one that finds r > c consumes what the socket
says was looked at and not consumed: n after step 2, nothing after step 3.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import suppress

from kuasar.core import log
from kuasar.core.failpoints import failpoint
from kuasar.gateway import exchange
from kuasar.gateway.exchange import DamagedLog, Exchange, Recorded

_CONSUMED = struct.Struct("<Q")
_UNPROTECTED = (1 << 64) - 1
"""In place of the consumed bytes: something could not be written down, so that a successor must not go on."""
_LOOK_BYTES = 64 * 1024
_COMPACT_BYTES = 64 * 1024
# <asm-generic/socket.h>; Python's socket module does not name it
_SO_PEEK_OFF = 42


class ConnectionLog:
    """The log, and the :class:`Exchange` that it leads to. Close it, or remove it when the connection has ended."""

    def __init__(self, path: str, fd: int, state: Exchange, size: int, consumed: int) -> None:
        """Owns ``fd``. Use :meth:`create` or :meth:`open`."""
        self.exchange = state
        self._path = path
        self._fd = fd
        self._size = size
        self._consumed = consumed

    @classmethod
    def create(cls, path: str, connection: socket.socket) -> ConnectionLog:
        """For a connection from which nothing has been read yet."""
        connection.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        created = cls(path, fd, Exchange(), _CONSUMED.size, 0)
        created._write(_CONSUMED.pack(0), 0)
        return created

    @classmethod
    def open(cls, path: str, connection: socket.socket) -> ConnectionLog:
        """Take a predecessor's log over, and finish the step at which it ended.

        Raises :class:`DamagedLog`, :class:`kuasar.gateway.ttrpc.ProtocolError` or ``OSError`` (FileNotFoundError:
        nothing has been read from the connection): then the connection cannot go on.
        """
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            content = _read_all(fd)
            if len(content) < _CONSUMED.size:
                content = _CONSUMED.pack(0)  # died in the middle of create
                os.pwrite(fd, content, 0)
            (consumed,) = _CONSUMED.unpack_from(content)
            if consumed == _UNPROTECTED:
                raise DamagedLog(f"{path}: not everything could be written down")
            state, size = exchange.replay(content[_CONSUMED.size :])
            size += _CONSUMED.size
            os.ftruncate(fd, size)
            opened = cls(path, fd, state, size, consumed)
            opened._finish_step(connection)
        except BaseException:
            os.close(fd)
            raise
        return opened

    def _finish_step(self, connection: socket.socket) -> None:
        """Make received and consumed bytes equal, whatever the predecessor had just been doing."""
        if self.exchange.received > self._consumed:
            looked_at = connection.getsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF)
            _consume(connection, looked_at)
            self._set_consumed(self.exchange.received)
        connection.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)

    # -- from the socket -----------------------------------------------------------------------------------------------

    def take(self, connection: socket.socket) -> list[Recorded] | None:
        """Take what has arrived, and give the requests that are whole now. None: the peer has closed.

        Raises BlockingIOError when there is nothing, other ``OSError`` when the connection is broken, and
        :class:`kuasar.gateway.ttrpc.ProtocolError` for nonsense.
        """
        data = connection.recv(_LOOK_BYTES, socket.MSG_PEEK)
        if not data:
            return None
        at = time.monotonic_ns()
        failpoint("gateway.request.seen")
        self._append(exchange.received(data, at))
        failpoint("gateway.request.recorded")
        _consume(connection, len(data))
        failpoint("gateway.request.consumed")
        fresh = self.exchange.receive(data, at)
        self._set_consumed(self.exchange.received)
        return fresh

    # -- what becomes of the requests ------------------------------------------------------------------------------

    def answered(self, stream: int) -> None:
        """The answer has been sent as a whole."""
        self._append(exchange.answered(stream))
        self.exchange.answered(stream)
        if self._size > _COMPACT_BYTES and self._size > 2 * self.exchange.size:
            self._compact()

    def keep(self, stream: int, frame: bytes, sent: int) -> None:
        """The answer is there, but only its first ``sent`` bytes could be sent."""
        self._append(exchange.unsent(stream, frame, sent))
        self.exchange.keep(stream, frame, sent)

    def progress(self, stream: int, sent: int) -> None:
        """More of an unsent answer has been sent, ``sent`` bytes by now. Harmless when it has been answered."""
        self._append(exchange.progress(stream, sent))
        self.exchange.progress(stream, sent)

    def bind(self, container: str, sandbox: str) -> None:
        """Remember which sandbox a container is in; a successor cannot look it up when the container is gone by
        then."""
        if self.exchange.bound.get(container) != sandbox:
            self._append(exchange.bound(container, sandbox))
            self.exchange.bound[container] = sandbox

    # -- the file --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave the log to a successor. Harmless to repeat."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """The connection has ended."""
        self.close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)

    def _append(self, record: bytes) -> None:
        if self._consumed != _UNPROTECTED and self._write(record, self._size):
            self._size += len(record)

    def _set_consumed(self, count: int) -> None:
        if self._consumed != _UNPROTECTED and self._write(_CONSUMED.pack(count), 0):
            self._consumed = count

    def _write(self, data: bytes, offset: int) -> bool:
        """If the disk is full the connection goes on, but would not survive us: serving now is worth more."""
        try:
            if os.pwrite(self._fd, data, offset) == len(data):
                return True
            reason = "the disk is full"
        except OSError as exc:
            reason = str(exc)
        log.error("a task connection is no longer protected against our death", log=self._path, why=reason)
        self._consumed = _UNPROTECTED
        with suppress(OSError):
            os.pwrite(self._fd, _CONSUMED.pack(_UNPROTECTED), 0)
        return False

    def _compact(self) -> None:
        """Replace the log by a shorter one that leads to the same state."""
        content = _CONSUMED.pack(self._consumed) + self.exchange.snapshot()
        try:
            fd = os.open(f"{self._path}.new", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            log.warning("a log could not be shortened", log=self._path, error=exc)
            return
        try:
            if os.pwrite(fd, content, 0) != len(content):
                raise OSError("the disk is full")
            os.rename(f"{self._path}.new", self._path)
        except OSError as exc:
            log.warning("a log could not be shortened", log=self._path, error=exc)
            os.close(fd)
            return
        os.close(self._fd)
        self._fd, self._size = fd, len(content)


def _consume(connection: socket.socket, count: int) -> None:
    """Read what has been looked at before, so it is there and nothing blocks."""
    while count > 0:
        data = connection.recv(count)
        if not data:
            raise ConnectionResetError("the connection ended before what had been looked at")
        count -= len(data)


def _read_all(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    parts: list[bytes] = []
    done = 0
    while done < size:
        part = os.pread(fd, size - done, done)
        if not part:
            break
        parts.append(part)
        done += len(part)
    return b"".join(parts)
