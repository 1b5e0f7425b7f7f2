"""ttrpc over asyncio: reading frames, and a client (the frames themselves: kuasar/core/ttrpc.py).

TtrpcClient:  idle --call--> connected --EOF, damage, close()--> idle
every call open on a connection that ends fails with Unavailable; the next call dials again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from kuasar.api.gen.ttrpc.ttrpc_pb2 import KeyValue, Request, Response
from kuasar.core import errors
from kuasar.core.ttrpc import FrameType, Header, ProtocolError, encode_frame

MAX_STREAM = 0xFFFFFFFF

M = TypeVar("M", bound=Message)


class CallRefused(errors.KuasarError):
    """The peer executed the call and said no: `code` is its gRPC status code, the message its own words."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message, code=code)
        self.code = code


async def read_frame(reader: asyncio.StreamReader) -> tuple[Header, bytes] | None:
    """The next frame, or None when the peer closed between two frames.

    ProtocolError if it closed within one, or if the header is bad: nothing more can be read then, because where
    the next frame starts is not known.
    """
    try:
        header = Header.decode(await reader.readexactly(Header.SIZE))
        return header, await reader.readexactly(header.length)
    except asyncio.IncompleteReadError as error:
        if not error.partial and error.expected == Header.SIZE:
            return None
        raise ProtocolError(f"peer closed within a frame, {len(error.partial)} of {error.expected} bytes in") from error


class TtrpcClient:
    """Unary calls to one ttrpc server; many may be open at once. Belongs to one event loop; `close` when done."""

    def __init__(self, path: str) -> None:
        """`path` is the server's unix socket; it need not exist before the first call."""
        self._path = path
        self._connection: _Connection | None = None
        self._dialling = asyncio.Lock()

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        answer: type[M],
        *,
        timeout: float,  # noqa: ASYNC109 - sent to the peer as well, which asyncio.timeout around us could not do
        metadata: Mapping[str, str] | None = None,
    ) -> M:
        """Calls `service`/`method` and returns its answer, within `timeout` seconds, dialling included.

        Raises Unavailable (no server there, or it went away: whether it executed the call is then unknown),
        DeadlineExceeded, CallRefused, ResourceExhausted (request too large), ProtocolError (an answer that
        does not decode). A failed call is never repeated here.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        try:
            async with asyncio.timeout_at(deadline):
                connection = await self._connect()
                message = Request(
                    service=service,
                    method=method,
                    payload=request.SerializeToString(),
                    timeout_nano=max(1, int((deadline - loop.time()) * 1e9)),
                    metadata=[KeyValue(key=key, value=value) for key, value in (metadata or {}).items()],
                )
                data = await connection.exchange(message.SerializeToString())
        except TimeoutError:
            raise errors.DeadlineExceeded(f"{service}/{method} on {self._path}: no answer in {timeout:g} s") from None
        return _decode_answer(f"{service}/{method}", data, answer)

    async def close(self) -> None:
        """Ends the connection, if there is one; open calls fail with Unavailable. Harmless to repeat."""
        if connection := self._connection:
            self._connection = None
            await connection.close()

    async def _connect(self) -> _Connection:
        async with self._dialling:
            if self._connection and self._connection.usable:
                return self._connection
            await self.close()
            try:
                streams = await asyncio.open_unix_connection(self._path)
            except OSError as error:
                raise errors.Unavailable(f"cannot connect to {self._path}: {error.strerror or error}") from error
            self._connection = _Connection(self._path, *streams)
            return self._connection


class _Connection:
    """One dialled connection: hands out streams, and gives each answer to the call that waits for it."""

    def __init__(self, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._path = path
        self._reader = reader
        self._writer = writer
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._next_stream = 1
        self._broken: errors.KuasarError | None = None
        self._receiver = asyncio.create_task(self._receive(), name=f"ttrpc {path}")

    @property
    def usable(self) -> bool:
        """False once the connection ended or ran out of stream numbers."""
        return self._broken is None and self._next_stream <= MAX_STREAM

    async def exchange(self, request: bytes) -> bytes:
        """Sends a request on a new stream and returns the data of its response."""
        if self._broken:
            raise self._broken
        stream = self._next_stream
        frame = encode_frame(stream, FrameType.REQUEST, request)
        # Number taken and frame queued without a pause in between: the server refuses numbers that go backwards.
        self._next_stream += 2
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[stream] = answer
        self._writer.write(frame)
        try:
            with suppress(OSError):  # the receiver sees the same end and says why
                await self._writer.drain()
            return await answer
        finally:
            self._waiting.pop(stream, None)

    async def close(self) -> None:
        """Ends the connection and waits until its task and socket are gone."""
        self._fail(errors.Unavailable(f"connection to {self._path} was closed on this side"))
        self._receiver.cancel()
        await asyncio.wait([self._receiver])
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _receive(self) -> None:
        try:
            while frame := await read_frame(self._reader):
                self._dispatch(*frame)
            self._fail(errors.Unavailable(f"{self._path} closed the connection"))
        except (ProtocolError, OSError) as error:
            failure = errors.Unavailable(f"connection to {self._path} broke: {error}")
            failure.__cause__ = error
            self._fail(failure)

    def _dispatch(self, header: Header, data: bytes) -> None:
        if header.type is not FrameType.RESPONSE:
            raise ProtocolError(f"got a {header.type.name} frame for a unary call", stream=header.stream)
        if header.stream % 2 == 0 or header.stream >= self._next_stream:
            raise ProtocolError(f"got a response on stream {header.stream}, never opened", stream=header.stream)
        answer = self._waiting.get(header.stream)
        # Nobody waits any more when the call ran into its deadline: the late answer is dropped.
        if answer and not answer.done():
            answer.set_result(data)

    def _fail(self, why: errors.KuasarError) -> None:
        if self._broken:
            return
        self._broken = why
        self._writer.transport.abort()  # close() would first wait for a peer that may never read again
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(why)


def _decode_answer(call: str, data: bytes, answer: type[M]) -> M:
    try:
        response = Response.FromString(data)
    except DecodeError as error:
        raise ProtocolError(f"{call}: response of {len(data)} bytes does not decode") from error
    if response.status.code:
        raise CallRefused(f"{call}: {response.status.message or 'no reason given'}", code=response.status.code)
    try:
        return answer.FromString(response.payload)
    except DecodeError as error:
        raise ProtocolError(f"{call}: payload is not a {answer.DESCRIPTOR.full_name}") from error
