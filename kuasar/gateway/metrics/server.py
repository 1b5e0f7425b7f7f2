"""Serves ``GET /metrics`` over HTTP/1.1 on a unix socket or a loopback address, on the gateway's loop.

Whoever asks is the operator's Prometheus, so there is no more of HTTP than that: no bodies, few connections at once,
and one that says nothing is closed. The protocol itself is h11's.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress

import h11

from kuasar.core import log
from kuasar.core.config import UNIX_PREFIX
from kuasar.core.errors import KuasarError, Unavailable

Scrape = Callable[[str], Awaitable[tuple[bytes, str]]]
"""From an ``Accept`` header to text and content type."""
MOST_CONNECTIONS = 16
IDLE_SECONDS = 120.0
"""Longer than anybody's scrape interval; Prometheus keeps its connection."""
_SEND_SECONDS = 10.0
_CHUNK = 65536
_PATH = b"/metrics"


class MetricsServer:
    """Listens from :meth:`start` to :meth:`close`. ``listen`` is as in the configuration."""

    def __init__(self, listen: str, scrape: Scrape) -> None:
        self._listen = listen
        self._scrape = scrape
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Raises :class:`Unavailable` when that is not possible."""
        try:
            if self._listen.startswith(UNIX_PREFIX):
                path = self._listen.removeprefix(UNIX_PREFIX)
                with suppress(FileNotFoundError):
                    os.unlink(path)  # a dead gateway's: we hold the lock that says that there is no other
                self._server = await asyncio.start_unix_server(self._accept, path)
                os.chmod(path, 0o600)
            else:
                host, _, port = self._listen.rpartition(":")
                self._server = await asyncio.start_server(self._accept, host.strip("[]"), int(port))
        except OSError as exc:
            raise Unavailable(f"metrics.listen: {self._listen}: {exc.strerror or exc}") from exc

    async def close(self) -> None:
        """End, also what is being answered. Harmless when not started."""
        if self._server is None:
            return
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self._server = None
        if self._listen.startswith(UNIX_PREFIX):
            with suppress(FileNotFoundError):
                os.unlink(self._listen.removeprefix(UNIX_PREFIX))

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MOST_CONNECTIONS:
            log.warning("too many connections to the metrics", most=MOST_CONNECTIONS)
            writer.close()
            return
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        try:
            while await self._serve_one(connection, reader, writer):
                connection.start_next_cycle()
        except (h11.RemoteProtocolError, TimeoutError, OSError) as exc:
            log.debug("a connection to the metrics ended", why=exc)
        finally:
            writer.close()

    async def _serve_one(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Whether another request may follow."""
        async with asyncio.timeout(IDLE_SECONDS):
            request = await _request(connection, reader)
        if request is None:
            return False
        status, body, content_type = await self._answer(request)
        headers = [("content-type", content_type), ("content-length", str(len(body)))]
        writer.write(connection.send(h11.Response(status_code=status, headers=headers)) or b"")
        if request.method != b"HEAD":
            writer.write(connection.send(h11.Data(data=body)) or b"")
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        async with asyncio.timeout(_SEND_SECONDS):
            await writer.drain()
        return connection.our_state is h11.DONE and connection.their_state is h11.DONE

    async def _answer(self, request: h11.Request) -> tuple[int, bytes, str]:
        plain = "text/plain; charset=utf-8"
        if request.target.partition(b"?")[0] != _PATH:
            return 404, b"there is only /metrics\n", plain
        if request.method not in (b"GET", b"HEAD"):
            return 405, b"only GET\n", plain
        accept = next((value for name, value in request.headers if name == b"accept"), b"")
        try:
            body, content_type = await self._scrape(accept.decode("latin-1"))
        except (KuasarError, OSError, ValueError, KeyError) as exc:
            log.error("the metrics could not be collected", error=repr(exc))
            return 500, f"{exc}\n".encode(), plain
        return 200, body, content_type


async def _request(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
    """The next request, its body thrown away; None if the peer has closed."""
    request: h11.Request | None = None
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_CHUNK))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.EndOfMessage):
            return request
        elif isinstance(event, h11.ConnectionClosed):
            return None
