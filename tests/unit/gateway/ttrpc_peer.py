"""A small real ttrpc server on a unix socket, for the tests of those who call one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from kuasar.api.gen.ttrpc.ttrpc_pb2 import Request, Response, Status
from kuasar.core.ttrpc import FrameType, encode_frame
from kuasar.gateway.ttrpc import read_frame

Handler = Callable[[Request], Awaitable[Response]]


class TtrpcPeer:
    """Answers every call with what `handler` returns; records the requests. Can be stopped and started again."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self.path = path
        self.handler = handler
        self.requests: list[Request] = []
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> TtrpcPeer:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server
        self._server.close()
        self.hang_up()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self.path.unlink()

    def hang_up(self) -> None:
        """Drops every connection, whatever is going on on it."""
        for task in self._tasks:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        calls: set[asyncio.Task[None]] = set()
        try:
            with suppress(asyncio.CancelledError):
                while frame := await read_frame(reader):
                    header, data = frame
                    assert header.type is FrameType.REQUEST
                    request = Request.FromString(data)
                    self.requests.append(request)
                    calls.add(asyncio.create_task(self._answer(writer, header.stream, request)))
        finally:
            for call in calls:
                call.cancel()
            writer.transport.abort()
            self._tasks.discard(task)

    async def _answer(self, writer: asyncio.StreamWriter, stream: int, request: Request) -> None:
        response = await self.handler(request)
        writer.write(encode_frame(stream, FrameType.RESPONSE, response.SerializeToString()))


def refusal(code: int, message: str) -> Response:
    """A response that says no."""
    return Response(status=Status(code=code, message=message))
