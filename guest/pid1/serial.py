"""Connections over a virtio-serial port, which has none of its own.

A port is one endless pair of byte streams; the guest learns late or never that another worker opened the host's side,
and bytes of the one before may still be under way in both directions. So the host begins each connection with ``OPEN``
and 16 bytes of its choice, the carrier makes a new connection to the agent and answers ``READY`` and the same 16 bytes;
the host throws away all that comes before that. ``CLOSED`` and the 16 bytes say that the agent has closed the
connection. None of the three can be the start of a frame: its length would be beyond the protocol's limit.

The carrier runs in the agent's own loop, so that it costs the guest no process. If it fails the machine is powered
off, because nothing can reach the agent any more.
"""

from __future__ import annotations

import os
import select
import socket
import time
from contextlib import suppress

OPEN = b"\xc1kuasar-open--1\xc1"
READY = b"\xc1kuasar-ready-1\xc1"
CLOSED = b"\xc1kuasar-closed1\xc1"
NONCE_BYTES = 16

_OPENING_BYTES = len(OPEN) + NONCE_BYTES
_CHUNK = 64 * 1024
_MAX_WAITING = 4 * _CHUNK
"""As much is held in each direction; a side that reads slowly slows the other one down."""
_FLUSH_SECONDS = 1.0
_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLET


class Carrier:
    """Carries bytes between the open, non-blocking device ``port``, which it owns from now on, and connections to the
    socket at ``agent``."""

    def __init__(self, port: int, agent: str) -> None:
        self._port = port
        self._agent = agent
        self._connection: socket.socket | None = None
        self._nonce = b""
        self._tail = b""
        """The end of what came from the host: the start of an opening may be in it."""
        self._to_agent = bytearray()
        self._to_host = bytearray()
        # A port without a host is "hung up" all the time: only changes may wake us.
        self._epoll = select.epoll()
        self._epoll.register(self._port, _EVENTS)

    def fileno(self) -> int:
        """Readable when there may be something to carry."""
        return self._epoll.fileno()

    def pump(self) -> None:
        """Carry all that can be carried now. Raises ``OSError`` when the port fails."""
        self._epoll.poll(0)  # takes the news that made it readable; what comes from here on makes it readable again
        progress = True
        while progress:
            progress = self._read_port() | self._write_agent() | self._read_agent() | self._write_port()

    def flush(self) -> None:
        """Carry the agent's last words, for at most a second."""
        deadline = time.monotonic() + _FLUSH_SECONDS
        self.pump()
        while self._to_host and time.monotonic() < deadline:
            self._epoll.poll(_FLUSH_SECONDS)
            self.pump()

    # -- from the host ---------------------------------------------------------------------------------------------

    def _read_port(self) -> bool:
        if len(self._to_agent) >= _MAX_WAITING:
            return False
        try:
            data = os.read(self._port, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            # "No host": but this news travels on a queue of its own and may be older than an opening that was read
            # already. Nothing may be done about it, and nothing needs to: the next opening ends what there is.
            return False
        self._from_host(data)
        return True

    def _from_host(self, data: bytes) -> None:
        window = self._tail + data
        start = window.find(OPEN)
        if start < 0 or len(window) - start < _OPENING_BYTES:
            # Never held back: if it is the start of an opening, then this connection ends with it, whatever it got.
            if self._connection is not None:
                self._to_agent += data
            self._tail = window[-(_OPENING_BYTES - 1) :]
            return
        self._tail = b""
        self._connect(window[start + len(OPEN) : start + _OPENING_BYTES])
        rest = window[start + _OPENING_BYTES :]
        if rest:
            self._from_host(rest)

    def _connect(self, nonce: bytes) -> None:
        self._disconnect()
        self._to_host.clear()  # nobody would look at it
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        connection.setblocking(False)  # who would have to accept it waits for us
        self._nonce = nonce
        try:
            connection.connect(self._agent)
        except OSError:  # the agent is about to end, or many openings came at once
            connection.close()
            self._to_host += CLOSED + nonce
            return
        self._connection = connection
        self._epoll.register(connection.fileno(), _EVENTS)
        self._to_host += READY + nonce

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._epoll.unregister(self._connection.fileno())
            self._connection.close()
            self._connection = None
        self._to_agent.clear()

    def _write_agent(self) -> bool:
        if self._connection is None or not self._to_agent:
            return False
        try:
            sent = self._connection.send(self._to_agent)
        except BlockingIOError:
            return False
        except OSError:
            self._agent_closed()
            return True
        del self._to_agent[:sent]
        return True

    # -- from the agent --------------------------------------------------------------------------------------------

    def _read_agent(self) -> bool:
        if self._connection is None or len(self._to_host) >= _MAX_WAITING:
            return False
        try:
            data = self._connection.recv(_CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            self._to_host += data
        else:
            self._agent_closed()
        return True

    def _agent_closed(self) -> None:
        self._disconnect()
        self._to_host += CLOSED + self._nonce

    def _write_port(self) -> bool:
        if not self._to_host:
            return False
        with suppress(BlockingIOError):
            written = os.write(self._port, self._to_host)
            del self._to_host[:written]
            return written > 0
        return False
