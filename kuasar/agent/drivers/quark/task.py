"""Calling the Task server of a Quark sandbox (``containerd.task.v2`` over ttrpc), from the agent's loop.

Every call has a connection of its own: a ``Wait`` that lasts as long as its container keeps nobody else waiting.
"""

from __future__ import annotations

import socket
import time
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from kuasar.api.gen.ttrpc.ttrpc_pb2 import Request, Response
from kuasar.core.aio import Loop
from kuasar.core.errors import BackendFailed, NotFound, Unavailable
from kuasar.core.ttrpc import FrameType, Header, ProtocolError, encode_frame

_SERVICE = "containerd.task.v2.Task"
_NOT_FOUND = 5
M = TypeVar("M", bound=Message)


class TaskServer:
    """The server that listens on the unix socket ``path``."""

    def __init__(self, loop: Loop, path: str) -> None:
        self._loop = loop
        self._path = path

    async def call(self, method: str, request: Message, answer: type[M], deadline: float | None) -> M:
        """The answer to ``method``. Raises :class:`NotFound` and :class:`BackendFailed` with Quark's words,
        :class:`Unavailable` when nobody is there (any more), DeadlineExceeded."""
        what = f"quark's {method}"
        left = 0 if deadline is None else max(1, int((deadline - time.monotonic()) * 1e9))
        message = Request(
            service=_SERVICE, method=method, payload=request.SerializeToString(), timeout_nano=left
        ).SerializeToString()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            try:
                channel.connect(self._path)
                channel.setblocking(True)
                channel.sendall(encode_frame(1, FrameType.REQUEST, message))
                channel.setblocking(False)
                data = await self._loop.wait_for(self._receive(channel, what), deadline, what)
            except OSError as exc:
                raise Unavailable(f"{what}: nobody answers: {exc.strerror}") from exc
        return _decode(what, data, answer)

    async def _receive(self, channel: socket.socket, what: str) -> bytes:
        try:
            header = Header.decode(await self._exactly(channel, Header.SIZE, what))
        except ProtocolError as exc:
            raise BackendFailed(f"{what}: {exc}") from exc
        if header.type is not FrameType.RESPONSE or header.stream != 1:
            raise BackendFailed(f"{what}: got a {header.type.name} frame on stream {header.stream}")
        return await self._exactly(channel, header.length, what)

    async def _exactly(self, channel: socket.socket, size: int, what: str) -> bytes:
        data = b""
        while len(data) < size:
            await self._loop.wait_readable(channel.fileno())
            chunk = channel.recv(size - len(data))
            if not chunk:
                raise Unavailable(f"{what}: the sandbox hung up")
            data += chunk
        return data


def _decode(what: str, data: bytes, answer: type[M]) -> M:
    try:
        response: Any = Response.FromString(data)
        if response.status.code:
            words = f"{what}: {response.status.message or 'no reason given'}"
            raise NotFound(words) if response.status.code == _NOT_FOUND else BackendFailed(words)
        return answer.FromString(response.payload)
    except DecodeError as exc:
        raise BackendFailed(f"{what}: an answer of {len(data)} bytes that does not decode") from exc
