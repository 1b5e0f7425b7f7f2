"""A connection to the gateway's Task API over ttrpc, as containerd has one: it outlives the gateway."""

from __future__ import annotations

import socket

from kuasar.api.gen.containerd.task.v3 import task_pb2 as pb
from kuasar.api.gen.ttrpc.ttrpc_pb2 import KeyValue, Request, Response
from kuasar.core.ttrpc import FrameType, Header, encode_frame

SERVICE = "containerd.task.v3.Task"
NAMESPACE = "k8s.io"


def encode_call(
    method: str, request: pb.StateRequest | pb.WaitRequest | pb.KillRequest, stream: int, seconds: int
) -> bytes:
    """One call as it goes over the wire."""
    call = Request(
        service=SERVICE,
        method=method,
        payload=request.SerializeToString(),
        timeout_nano=seconds * 10**9,
        metadata=[KeyValue(key="containerd-namespace-ttrpc", value=NAMESPACE)],
    )
    return encode_frame(stream, FrameType.REQUEST, call.SerializeToString())


class TaskConnection:
    """One call after the other."""

    def __init__(self, path: str, seconds: int) -> None:
        """Connects. ``seconds``: what a call may take."""
        self._seconds = seconds
        self._stream = -1
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(seconds)
        self._socket.connect(path)
        self._file = self._socket.makefile("rb")

    def state(self, container: str) -> pb.StateResponse:
        """Of a container. Raises :class:`AssertionError` for a refusal, :class:`OSError` where there is no answer."""
        self._stream += 2
        self._socket.sendall(encode_call("State", pb.StateRequest(id=container), self._stream, self._seconds))
        header = Header.decode(self._file.read(Header.SIZE))
        assert (header.stream, header.type) == (self._stream, FrameType.RESPONSE)
        response = Response.FromString(self._file.read(header.length))
        assert not response.status.code, response.status
        return pb.StateResponse.FromString(response.payload)

    def close(self) -> None:
        """Harmless to repeat."""
        self._file.close()
        self._socket.close()
