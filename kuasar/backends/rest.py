"""The REST interface of a VMM: HTTP/1.1 on a unix socket, by h11, for the worker's loop.

Every request has a connection of its own, so one that was given up cannot leave half an answer to the next. Open
descriptors (taps) travel beside the first byte of a request, as Cloud Hypervisor expects them.
"""

from __future__ import annotations

import array
import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import h11

from kuasar.backends.sockets import connect
from kuasar.core.aio import Loop
from kuasar.core.errors import BackendFailed, Unavailable

_SECONDS = 30.0
_CHUNK = 64 * 1024
_MOST_BYTES = 4 * 1024 * 1024


class Rest:
    """The interface of ``vmm`` that listens on the socket ``name`` in ``directory``. Endpoints are below ``prefix``;
    ``words`` takes the reason out of the body of an answer that is no."""

    def __init__(
        self, loop: Loop, directory: str, name: str, *, vmm: str, prefix: str, words: Callable[[bytes], str]
    ) -> None:
        self._loop = loop
        self._directory = directory
        self._name = name
        self._vmm = vmm
        self._prefix = prefix
        self._words = words

    async def get(self, endpoint: str, deadline: float | None = None) -> Any:
        """What ``endpoint`` (``vm.info``) tells. Errors as :meth:`call`."""
        return await self.call("GET", endpoint, deadline=deadline)

    async def put(
        self,
        endpoint: str,
        body: Mapping[str, Any] | None = None,
        fds: Sequence[int] = (),
        deadline: float | None = None,
    ) -> Any:
        """Have ``endpoint`` (``vm.boot``) done. Errors as :meth:`call`."""
        return await self.call("PUT", endpoint, body, fds, deadline)

    async def call(
        self,
        method: str,
        endpoint: str,
        body: Mapping[str, Any] | None = None,
        fds: Sequence[int] = (),
        deadline: float | None = None,
    ) -> Any:
        """The decoded answer to a request, None where there is none. ``fds`` stay the caller's. Raises
        :class:`BackendFailed` with the VMM's words if it says no (``status`` in its data), :class:`Unavailable` if it
        is gone, DeadlineExceeded at ``deadline`` (monotonic; at most 30 s from now)."""
        limit = time.monotonic() + _SECONDS
        what = f"{self._vmm}'s {endpoint or 'state'}"
        exchange = self._exchange(method, endpoint, body, fds, what)
        status, data = await self._loop.wait_for(exchange, limit if deadline is None else min(limit, deadline), what)
        if status >= 300:
            raise BackendFailed(f"{what}: {self._words(data) or 'no reason given'} (HTTP {status})", status=status)
        if not data:
            return None
        try:
            return json.loads(data)
        except ValueError as exc:
            raise BackendFailed(f"{what}: its answer is no JSON: {data!r:.200}") from exc

    async def _exchange(
        self, method: str, endpoint: str, body: Mapping[str, Any] | None, fds: Sequence[int], what: str
    ) -> tuple[int, bytes]:
        try:
            sock = connect(self._directory, self._name, self._vmm)
        except BackendFailed as exc:
            raise Unavailable(exc.message) from exc
        with sock:
            sock.setblocking(False)
            connection = h11.Connection(h11.CLIENT)
            try:
                await self._send(sock, _request(connection, method, self._prefix + endpoint, body), fds)
                return await self._receive(sock, connection)
            except OSError as exc:
                raise Unavailable(f"{what}: the connection broke: {exc.strerror}") from exc
            except h11.RemoteProtocolError as exc:
                raise Unavailable(f"{what}: the VMM ended the connection without an answer: {exc}") from exc

    async def _send(self, sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        while data:
            try:
                sent = sock.sendmsg([data], rights)
            except BlockingIOError:
                await self._until_writable(sock.fileno())
                continue
            data, rights = data[sent:], []

    async def _until_writable(self, fd: int) -> None:
        writable = self._loop.future()
        self._loop.add_writer(fd, lambda: writable.set_result(None))
        try:
            await writable
        finally:
            self._loop.remove_writer(fd)

    async def _receive(self, sock: socket.socket, connection: h11.Connection) -> tuple[int, bytes]:
        status, data = 0, bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                await self._loop.wait_readable(sock.fileno())
                with suppress(BlockingIOError):
                    connection.receive_data(sock.recv(_CHUNK))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                data += event.data
                if len(data) > _MOST_BYTES:
                    raise BackendFailed(f"{self._vmm}'s answer is larger than {_MOST_BYTES >> 20} MiB")
            elif isinstance(event, h11.EndOfMessage):
                return status, bytes(data)


def _request(connection: h11.Connection, method: str, target: str, body: Mapping[str, Any] | None) -> bytes:
    content = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
    headers = [("Host", "localhost"), ("Accept", "application/json")]
    if body is not None:
        headers += [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
    parts = [connection.send(h11.Request(method=method, target=target, headers=headers))]
    if content:
        parts.append(connection.send(h11.Data(data=content)))
    parts.append(connection.send(h11.EndOfMessage()))
    return b"".join(part for part in parts if part)


def socket_path(directory: str, name: str) -> str:
    """A path that the VMM itself binds or connects to. Raises :class:`BackendFailed` if an address cannot hold it."""
    path = f"{directory}/{name}"
    if len(os.fsencode(path)) >= _ADDRESS_BYTES:
        raise BackendFailed(
            f"{path} is longer than the {_ADDRESS_BYTES - 1} bytes of a socket address: shorten state_dir"
        )
    return path


_ADDRESS_BYTES = 108
