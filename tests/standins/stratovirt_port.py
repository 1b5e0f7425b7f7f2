"""The stand-in's virtio-serial port or console: the guest's half of how a connection begins on it, which has none of
its own (docs/guest-image.md, "The channel"). Written from that page, not from the guest's carrier."""

from __future__ import annotations

import select
import socket
import threading
from typing import Protocol

OPEN, READY, CLOSED = (b"\xc1kuasar-%s\xc1" % word for word in (b"open--1", b"ready-1", b"closed1"))
NONCE = 16
AGENT_PORT = 1024


class Agents(Protocol):
    """Of a guest, what is needed here."""

    def connect(self, port: int) -> socket.socket:
        """A connection to the agent. Raises ``OSError`` while nobody listens."""


class Port:
    """Serves hosts on ``listener``, one after the other, as the chardev does. The guest hears nothing of a host that
    has gone: what it says then is lost, and its connection stays until the next one is asked for."""

    def __init__(self, listener: socket.socket, guest: Agents) -> None:
        self._listener = listener
        self._guest = guest
        self._host: socket.socket | None = None
        self._agent: socket.socket | None = None
        self._nonce = b""
        self._tail = b""

    def start(self) -> None:
        """In a thread of its own, until the program ends."""
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            sources = [each for each in (self._host or self._listener, self._agent) if each is not None]
            ready, _, _ = select.select(sources, [], [])
            if self._agent in ready:
                self._from_agent()
            if self._listener in ready:
                self._host, _ = self._listener.accept()
            elif self._host in ready:
                self._from_host()

    def _from_agent(self) -> None:
        assert self._agent is not None
        data = _receive(self._agent)
        self._to_host(data or CLOSED + self._nonce)
        if not data:
            self._agent.close()
            self._agent = None

    def _to_host(self, data: bytes) -> None:
        if self._host is None:
            return
        try:
            self._host.sendall(data)
        except OSError:
            self._lose_host()

    def _from_host(self) -> None:
        assert self._host is not None
        data = _receive(self._host)
        if not data:
            self._lose_host()
            return
        window = self._tail + data
        at = window.find(OPEN)
        if at < 0 or len(window) < at + len(OPEN) + NONCE:
            self._to_agent(data)
            self._tail = window[-(len(OPEN) + NONCE - 1) :]
            return
        self._tail = b""
        self._nonce = window[at + len(OPEN) : at + len(OPEN) + NONCE]
        self._connect()
        self._to_host((READY if self._agent is not None else CLOSED) + self._nonce)
        self._to_agent(window[at + len(OPEN) + NONCE :])

    def _to_agent(self, data: bytes) -> None:
        if self._agent is not None and data:
            try:
                self._agent.sendall(data)
            except OSError:
                return  # it is read next, and found to have gone

    def _lose_host(self) -> None:
        assert self._host is not None
        self._host.close()
        self._host = None

    def _connect(self) -> None:
        """As soon as the agent listens: a booting guest answers late, not never."""
        if self._agent is not None:
            self._agent.close()
            self._agent = None
        while self._agent is None:
            try:
                self._agent = self._guest.connect(AGENT_PORT)
            except (ConnectionRefusedError, FileNotFoundError):
                select.select([], [], [], 0.01)


def _receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except OSError:
        return b""
