"""Services over ttrpc: the Task API as containerd's shims speak it, at a third of gRPC's cost per call.

One listening socket, one connection per container of containerd's. A connection that breaks the protocol is closed; a
request that does not decode, or that nobody serves, is answered with its status. Peers must be root or us.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from google.protobuf.message import DecodeError

from kuasar.api.gen.ttrpc.ttrpc_pb2 import Request, Response, Status
from kuasar.core import log
from kuasar.core.errors import InvalidArgument, KuasarError, ResourceExhausted, Unimplemented
from kuasar.gateway.calls import Method
from kuasar.gateway.status import code_of
from kuasar.gateway.ttrpc import FrameType, Header, ProtocolError, encode_frame

NAMESPACE_KEY = "containerd-namespace-ttrpc"
_BACKLOG = 512
_MAX_CALLS = 1024
"""Calls under way on one connection; more are refused."""
_MAX_UNSENT = 16 * 1024 * 1024
"""Bytes a peer may leave unread before it is cut off."""

Services = dict[str, dict[str, Method]]


class TtrpcServer:
    """Serves from :meth:`start` to :meth:`close`."""

    def __init__(self, path: str, services: Services) -> None:
        self._path = path
        self._services = services
        self._server: asyncio.Server | None = None
        self.connections: set[_Connection] = set()

    async def start(self) -> None:
        """Listen. What lies at the path is dead: the caller holds the gateway's lock."""
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        listener.bind(self._path)
        os.chmod(self._path, 0o600)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: _Connection(self._services, self.connections), sock=listener, backlog=_BACKLOG
        )

    async def close(self) -> None:
        """Stop listening and end all connections; calls under way end with them."""
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.abort("the gateway is stopping")


class _Connection(asyncio.Protocol):
    """One client. Frames in, answers out, in whatever order they are ready."""

    def __init__(self, services: Services, connections: set[_Connection]) -> None:
        self._services = services
        self._connections = connections
        self._buffer = bytearray()
        self._calls: set[asyncio.Task[None]] = set()
        self._waits: set[asyncio.Task[None]] = set()
        self._last_stream = 0
        self._transport: asyncio.Transport | None = None

    # -- the transport -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        uid = _peer_uid(transport.get_extra_info("socket"))
        if uid not in (0, os.geteuid()):
            log.warning("a peer of another user was turned away", uid=uid)
            transport.abort()
            return
        transport.set_write_buffer_limits(high=_MAX_UNSENT)
        self._transport = transport
        self._connections.add(self)

    def pause_writing(self) -> None:
        """The peer does not read its answers."""
        self.abort(f"more than {_MAX_UNSENT} bytes of answers are unread")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._connections.discard(self)
        for task in self._waits:
            task.cancel()  # what changes something goes on: it was asked for

    def abort(self, why: str) -> None:
        """End the connection now."""
        if self._transport is not None:
            log.warning("ttrpc connection ended", why=why)
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            while len(self._buffer) >= Header.SIZE:
                header = Header.decode(bytes(self._buffer[: Header.SIZE]))
                end = Header.SIZE + header.length
                if len(self._buffer) < end:
                    return
                payload = bytes(self._buffer[Header.SIZE : end])
                del self._buffer[:end]
                self._frame(header, payload)
        except ProtocolError as exc:
            self._buffer.clear()
            self.abort(str(exc))

    # -- calls -------------------------------------------------------------------------------------------------------

    def _frame(self, header: Header, payload: bytes) -> None:
        if header.type is not FrameType.REQUEST:
            raise ProtocolError(
                f"a frame of type {header.type.name}: only unary calls are served", stream=header.stream
            )
        if header.stream % 2 == 0 or header.stream <= self._last_stream:
            raise ProtocolError(f"stream {header.stream} after {self._last_stream}", stream=header.stream)
        self._last_stream = header.stream
        try:
            if len(self._calls) >= _MAX_CALLS:
                raise ResourceExhausted(f"{_MAX_CALLS} calls are under way on this connection")
            request, method = self._look_up(payload)
        except KuasarError as exc:
            self._refuse(header.stream, exc)
            return
        self._spawn(self._answer(header.stream, request, method), method.open_ended)

    def _look_up(self, payload: bytes) -> tuple[Request, Method]:
        try:
            request = Request.FromString(payload)
        except DecodeError as exc:
            raise InvalidArgument(f"not a ttrpc request: {exc}", field="request") from exc
        methods = self._services.get(request.service)
        if methods is None:
            raise Unimplemented(f"service {request.service!r} is not served here", capability=request.service)
        method = methods.get(request.method)
        if method is None:
            raise Unimplemented(f"{request.service} has no method {request.method!r}", capability=request.method)
        return request, method

    def _spawn(self, coro: Coroutine[Any, Any, None], open_ended: bool) -> None:
        task = asyncio.get_running_loop().create_task(coro)
        for tasks in (self._calls, self._waits) if open_ended else (self._calls,):
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _answer(self, stream: int, request: Request, method: Method) -> None:
        deadline = time.monotonic() + request.timeout_nano / 1e9 if request.timeout_nano > 0 else None
        metadata = {entry.key: entry.value for entry in request.metadata}
        try:
            try:
                message = method.request.FromString(request.payload)
            except DecodeError as exc:
                raise InvalidArgument(f"{method.name}: the request does not decode: {exc}", field="payload") from exc
            response = await method(message, metadata, NAMESPACE_KEY, deadline)
            self._send(stream, Response(payload=response.SerializeToString()))
        except KuasarError as exc:
            self._refuse(stream, exc)

    def _refuse(self, stream: int, error: KuasarError) -> None:
        code = int(code_of(error).value[0])
        self._send(stream, Response(status=Status(code=code, message=error.message)))

    def _send(self, stream: int, response: Response) -> None:
        if self._transport is not None:
            self._transport.write(encode_frame(stream, FrameType.RESPONSE, response.SerializeToString()))


def _peer_uid(peer: socket.socket) -> int:
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])
