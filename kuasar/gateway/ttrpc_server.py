"""Services over ttrpc: the Task API as containerd's shims speak it, at a third of gRPC's cost per call.

One listening socket, one connection per container of containerd's. containerd takes a container for dead when its
connection breaks, so the connections survive us: the keeper has them, and the listening socket, and a successor goes on
where we stopped (`ttrpc_connection.py`; the decision is docs/decisions/0007). Peers must be root or us.

Names with the keeper: ``gateway/listener``, ``gateway/spool`` (`outlet.py`), ``gateway/task/<connection number in
hex>``. Connections are numbered in nanoseconds since the epoch, counting on from the server's start, so that no number
comes twice.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from contextlib import suppress

from kuasar.core import log
from kuasar.core.errors import KuasarError
from kuasar.core.failpoints import failpoint
from kuasar.gateway.connection_log import ConnectionLog
from kuasar.gateway.custody import Custody
from kuasar.gateway.outlet import Outlet, new_spool
from kuasar.gateway.ttrpc_connection import Connection, Services, settle_last_piece

__all__ = ["Services", "TtrpcServer"]

_BACKLOG = 4096
"""Who connects to a unix socket whose backlog is full is refused; they also wait here while there is no gateway."""
_ACCEPTS = 32
"""At a time; then others have their turn."""
_SHORT_SECONDS = 0.2
_LISTENER = "gateway/listener"
_SPOOL = "gateway/spool"
_TASK = "gateway/task/"


class TtrpcServer:
    """Serves from :meth:`start` to :meth:`close`. ``journal`` is a directory of its own, on tmpfs."""

    def __init__(self, path: str, services: Services, custody: Custody, journal: str) -> None:
        self._path = path
        self._services = services
        self._custody = custody
        self._journal = journal
        self._listener: socket.socket | None = None
        self._outlet: Outlet | None = None
        self._next = time.time_ns()
        self.connections: set[Connection] = set()

    def start(self) -> None:
        """Take over what a predecessor has left, then listen. Nobody else may serve the path: the caller holds the
        lock.

        Returns without giving others a turn, so what was left unanswered is begun before anything else happens.
        """
        os.makedirs(self._journal, mode=0o700, exist_ok=True)
        self._listener = self._custody.listener(_LISTENER, self._path, _BACKLOG)
        spool, _ = self._custody.inherited(_SPOOL).get(_SPOOL, (-1, b""))
        self._outlet = Outlet(spool if spool >= 0 else new_spool(), lambda fd: self._custody.put(_SPOOL, fd))
        if spool < 0:
            self._custody.put(_SPOOL, self._outlet.fileno())
        self._take_over({name: fd for name, (fd, _) in self._custody.inherited(_TASK).items()})
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Stop serving; everything stays as it is for a successor. Harmless to repeat."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for connection in self.connections:
            connection.detach()
        self.connections.clear()
        if self._outlet is not None:
            self._outlet.close()

    # -- what a predecessor has left -----------------------------------------------------------------------------------

    def _take_over(self, inherited: dict[str, int]) -> None:
        assert self._outlet is not None
        found: list[tuple[int, socket.socket, ConnectionLog]] = []
        for name, fd in inherited.items():
            peer = socket.socket(fileno=fd)
            try:
                number = _number(name)
                found.append((number, peer, self._open_log(number, peer)))
            except (KuasarError, OSError, ValueError) as exc:
                log.error("a connection of our predecessor is lost", name=name, error=exc)
                self._give_up(name, peer)
        settle_last_piece([(number, connection_log) for number, _, connection_log in found], self._outlet)
        names = {f"{number:x}" for number, _, _ in found}
        for entry in os.listdir(self._journal):
            if entry not in names:
                os.unlink(f"{self._journal}/{entry}")
        for number, peer, connection_log in found:
            self._serve(number, peer, connection_log)
        if found:
            calls = sum(len(connection_log.exchange.requests) for _, _, connection_log in found)
            log.info("took over from a predecessor", connections=len(found), unanswered=calls)

    def _open_log(self, number: int, peer: socket.socket) -> ConnectionLog:
        path = f"{self._journal}/{number:x}"
        try:
            return ConnectionLog.open(path, peer)
        except FileNotFoundError:
            return ConnectionLog.create(path, peer)  # accepted, but nothing was read yet

    def _give_up(self, name: str, peer: socket.socket) -> None:
        with suppress(OSError):
            peer.shutdown(socket.SHUT_RDWR)
        self._custody.drop(name)
        peer.close()

    # -- connections ---------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            if self._listener is None:
                return
            number = self._next
            self._next += 1
            name = f"{_TASK}{number:x}"
            try:
                peer = self._custody.accept(self._listener, _LISTENER, name)
                if peer is None:
                    return
                failpoint("gateway.connection.accepted")
                self._admit(number, name, peer)
            except OSError as exc:
                log.error("a task connection could not be accepted", error=exc)
                self._pause()
                return

    def _admit(self, number: int, name: str, peer: socket.socket) -> None:
        uid = _peer_uid(peer)
        if uid not in (0, os.geteuid()):
            log.warning("a peer of another user was turned away", uid=uid)
            self._give_up(name, peer)
            return
        try:
            connection_log = ConnectionLog.create(f"{self._journal}/{number:x}", peer)
        except OSError:
            self._give_up(name, peer)
            raise
        self._serve(number, peer, connection_log)

    def _serve(self, number: int, peer: socket.socket, connection_log: ConnectionLog) -> None:
        assert self._outlet is not None
        connection = Connection(number, peer, connection_log, self._outlet, self._services, self._ended)
        self.connections.add(connection)
        connection.start()

    def _ended(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._custody.drop(f"{_TASK}{connection.number:x}")

    def _pause(self) -> None:
        """Short of descriptors: who waits to be accepted would otherwise keep the loop busy."""
        loop = asyncio.get_running_loop()
        if self._listener is not None:
            loop.remove_reader(self._listener)
            loop.call_later(_SHORT_SECONDS, self._resume)

    def _resume(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)


def _number(name: str) -> int:
    """Of a connection's name. ValueError for another name."""
    return int(name.removeprefix(_TASK), 16)


def _peer_uid(peer: socket.socket) -> int:
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])
