"""The gateway's ZeroMQ socket on the asyncio loop: a ROUTER that is bound, drained and written to, and nothing more.

Lives from :meth:`RouterEndpoint.open` to :meth:`RouterEndpoint.close`; owns context, socket, socket file and its lock.
Who may connect is decided by the 0700 directory the socket file is in (``open`` insists on it): ZeroMQ's own filter by
peer uid is deprecated, and its handshake for ipc carries no credentials that we could check.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import fcntl
import os
from collections.abc import Callable

import zmq

from kuasar.bus.messages import MAX_MESSAGE_BYTES
from kuasar.core import log
from kuasar.core.errors import PermissionDenied, Unavailable

_SCHEME = "ipc://"
_BATCH = 200
# Plain numbers: arithmetic with the enumerations costs more than the calls they are passed to.
_NOBLOCK = int(zmq.NOBLOCK)
_NOBLOCK_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_OPTIONS = {
    zmq.LINGER: 0,
    zmq.ROUTER_MANDATORY: 1,  # a send to nobody is an error, not silence
    zmq.ROUTER_HANDOVER: 1,  # a new connection takes the name over, also while the old one is not known to be dead
    zmq.MAXMSGSIZE: MAX_MESSAGE_BYTES,  # libzmq hangs up on more before it allocates it
}


class Sent(enum.Enum):
    """What became of a message."""

    QUEUED = "queued"
    NOBODY = "nobody"
    """No such peer is connected."""
    FULL = "full"
    """The peer does not read."""


class RouterEndpoint:
    """``receive(identity, frames)`` is called for every message, also for the empty probe of a new connection."""

    def __init__(self, address: str, receive: Callable[[bytes, list[bytes]], None], send_queue: int = 1000) -> None:
        self._address = address
        self._path = address.removeprefix(_SCHEME)
        self._receive = receive
        self._send_queue = send_queue
        self._scheduled = False
        self._lock_fd = -1
        self._fd = -1
        self._socket: zmq.Socket[bytes] | None = None

    def open(self, listener: int = -1) -> None:
        """Bind, and receive from the running asyncio loop on.

        ``listener`` is a socket that listens at the address already, and remains the caller's: one that outlives this
        process keeps workers that connect meanwhile waiting, instead of having them try again and again.

        Raises :class:`Unavailable` when another process serves the address, :class:`PermissionDenied` when others than
        the owner may enter the directory, ``OSError`` for what else the path allows not.
        """
        self._loop = asyncio.get_running_loop()
        _require_private(os.path.dirname(self._path))
        self._lock_fd = _lock(f"{self._path}.lock")
        try:
            self._context = zmq.Context(1)
            self._socket = self._context.socket(zmq.ROUTER)
            for option, value in {**_OPTIONS, zmq.SNDHWM: self._send_queue}.items():
                self._socket.setsockopt(option, value)
            if listener >= 0:
                self._socket.setsockopt(zmq.USE_FD, os.dup(listener))
            # Else libzmq unlinks what lies at the path, alive or not: that is what the lock is for.
            self._socket.bind(self._address)
            os.chmod(self._path, 0o600)
        except zmq.ZMQError as exc:
            self.close()
            raise OSError(exc.errno, exc.strerror, self._path) from exc
        except BaseException:
            self.close()
            raise
        self._fd = int(self._socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._fd, self._drain)
        self._drain()

    def close(self) -> None:
        """End; what is queued is dropped. Harmless when closed."""
        if self._socket is not None:
            if self._fd >= 0:
                self._loop.remove_reader(self._fd)
                self._fd = -1
            self._socket.close()
            self._socket = None
            self._context.term()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def send(self, identity: bytes, data: bytes) -> Sent:
        """Queue ``data`` for the peer, without waiting."""
        socket = self._socket
        if socket is None:
            return Sent.NOBODY
        try:
            socket.send(identity, _NOBLOCK_MORE)
            socket.send(data, _NOBLOCK)
        except zmq.Again:
            return Sent.FULL
        except zmq.ZMQError as exc:
            if exc.errno != errno.EHOSTUNREACH:
                raise
            return Sent.NOBODY
        finally:
            # A send may swallow the edge of the descriptor.
            if not self._scheduled and self._readable(socket):
                self._scheduled = True
                self._loop.call_soon(self._drain)
        return Sent.QUEUED

    def _readable(self, socket: zmq.Socket[bytes]) -> bool:
        """Whether something has arrived. Costs less than an exception that says that there is nothing."""
        return bool(int(socket.getsockopt(_EVENTS)) & _POLLIN)

    def _drain(self) -> None:
        """The descriptor is edge-triggered: read until there is nothing, but let others have their turn."""
        socket = self._socket
        self._scheduled = True  # what is sent from here on is followed by a look at the socket
        for _ in range(_BATCH):
            if socket is None or self._socket is None:
                return
            try:
                identity = socket.recv(_NOBLOCK)
            except zmq.Again:
                break
            frames = []
            while True:
                frame = socket.recv(_NOBLOCK, copy=False)
                frames.append(frame.bytes)
                if not frame.more:
                    break
            try:
                self._receive(identity, frames)
            except Exception as exc:  # one message must not keep the others from being read
                log.error("a message of the bus could not be handled", error=repr(exc))
            if self._socket is None or not self._readable(socket):
                break
        else:
            self._loop.call_soon(self._drain)
            return
        self._scheduled = False


def _require_private(directory: str) -> None:
    status = os.stat(directory)
    if status.st_mode & 0o077 or status.st_uid != os.geteuid():
        raise PermissionDenied(
            f"{directory}: mode {status.st_mode & 0o7777:04o}, owner {status.st_uid}: only uid {os.geteuid()} may "
            f"have access, because whoever enters may speak on the bus (chmod 0700)"
        )


def _lock(path: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Unavailable(f"{path}: held by another gateway, which serves the bus") from None
    except BaseException:
        os.close(fd)
        raise
    return fd
