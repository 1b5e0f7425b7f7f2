"""Has the keeper hold descriptors for us, so that they outlive this process. Synchronous and small.

Used by the gateway and the workers, each of which is a holder: it keeps its own descriptors and remembers what it has
put. The keeper may die, too: then :meth:`Keeper.fileno` becomes readable, the holder calls :meth:`Keeper.lost` and
puts everything again. Only when both die at once is anything lost.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress

from kuasar.core.errors import InvalidArgument, KuasarError, Unavailable
from kuasar.supervisor import keeper_wire
from kuasar.supervisor.keeper_wire import MAX_DESCRIPTORS, MAX_MESSAGE_BYTES, Reply, Request

TIMEOUT_SECONDS = 2.0
"""Of one call. A keeper that hangs longer counts as away."""

_Descriptors = list[int]
_Names = list[str]


class Keeper:
    """One persistent connection, made on first use, after any fork. Belongs to one thread.

    Every method raises :class:`Unavailable` when the keeper is away; the next call connects again. It may be a new
    keeper then, which knows nothing: whoever sees Unavailable puts everything again. What the keeper refuses raises
    :class:`InvalidArgument` (names, sizes) or :class:`ResourceExhausted` (its descriptors are used up).
    """

    def __init__(self, path: str, timeout: float = TIMEOUT_SECONDS) -> None:
        """``path`` is the keeper's socket; nothing need be there yet. ``timeout`` in seconds bounds each call."""
        self._path = path
        self._timeout = timeout
        self._socket: socket.socket | None = None

    def put(self, name: str, fds: Sequence[int], meta: bytes = b"") -> None:
        """Have duplicates of ``fds`` kept under ``name``, with ``meta``; what was there is replaced."""
        if len(fds) > MAX_DESCRIPTORS:
            raise InvalidArgument(f"{name}: {len(fds)} descriptors, at most {MAX_DESCRIPTORS} are allowed", field="fds")
        self._call(Request("put", name=name, meta=meta), fds)

    def get(self, name: str) -> tuple[_Descriptors, bytes] | None:
        """Duplicates of what is kept under ``name``, owned by the caller, and its meta; None if there is nothing."""
        reply, fds = self._call(Request("get", name=name))
        return (fds, reply.meta) if reply.found else None

    def drop(self, name: str) -> None:
        """Have it closed; harmless when unknown."""
        self._call(Request("drop", name=name))

    def drop_all(self, prefix: str) -> None:
        """Have everything closed whose name begins with ``prefix``."""
        self._call(Request("drop_all", prefix=prefix))

    def list(self, prefix: str) -> _Names:
        """All names that begin with ``prefix``, in order."""
        names: _Names = []
        while True:
            reply, _ = self._call(Request("list", prefix=prefix, after=names[-1] if names else ""))
            names.extend(reply.names)
            if not reply.more:
                return names

    def accept(self, listener: str, name: str) -> int | None:
        """Have the keeper accept a connection on the socket it keeps as ``listener`` and keep that as ``name``.

        Gives a duplicate, owned by the caller; None when nobody waits to be accepted. Accepting there means that this
        process may die at any moment without breaking the connection. Raises NotFound for an unknown listener.
        """
        reply, fds = self._call(Request("accept", name=name, listener=listener))
        return fds[0] if reply.found else None

    def resign(self) -> None:
        """For a successor of the keeper: it serves nobody but us from now on, until we leave or say ``done``."""
        self._call(Request("resign"))

    def done(self) -> None:
        """For a successor of the keeper: it exits."""
        self._call(Request("done"))
        self.lost()

    def fileno(self) -> int | None:
        """The connection's descriptor, to be watched: readable between calls means that the keeper has gone."""
        return None if self._socket is None else self._socket.fileno()

    def lost(self) -> None:
        """Forget the connection. Harmless when there is none."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    close = lost

    def _call(self, request: Request, fds: Sequence[int] = ()) -> tuple[Reply, _Descriptors]:
        data = keeper_wire.encode_request(request)
        try:
            connection = self._connect()
            if fds:
                socket.send_fds(connection, [data], fds)
            else:
                connection.send(data)
            answer, received, flags, _ = socket.recv_fds(
                connection, MAX_MESSAGE_BYTES, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except OSError as exc:
            self.lost()  # an answer that comes late must not be taken for that to another request
            why = "does not answer" if isinstance(exc, TimeoutError) else f"is away: {exc.strerror}"
            raise Unavailable(f"{request.op}: the keeper at {self._path} {why}") from exc
        try:
            return self._read(request, answer, received, flags), received
        except KuasarError:
            for fd in received:
                os.close(fd)
            raise

    def _read(self, request: Request, answer: bytes, received: _Descriptors, flags: int) -> Reply:
        if not answer:
            self.lost()
            raise Unavailable(f"{request.op}: the keeper at {self._path} is away: it closed the connection")
        if flags & socket.MSG_CTRUNC:
            raise Unavailable(f"{request.op}: {request.name}: this process cannot take so many descriptors")
        reply = keeper_wire.decode_reply(answer)
        if isinstance(reply, KuasarError):
            raise reply
        if request.op == "accept" and reply.found and len(received) != 1:
            raise Unavailable(f"accept: the keeper sent {len(received)} descriptors")
        return reply

    def _connect(self) -> socket.socket:
        if self._socket is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                connection.settimeout(self._timeout)
                connection.connect(self._path)
            except OSError:
                with suppress(OSError):
                    connection.close()
                raise
            self._socket = connection
        return self._socket
