"""The same services over gRPC and ttrpc: answers, errors, limits, and peers that break the protocol."""

# ruff: noqa: N802 - methods are named as the protobuf description names them
from __future__ import annotations

import asyncio
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc.aio
import pytest
from google.protobuf.empty_pb2 import Empty

from kuasar.api.gen.containerd.task.v3 import task_pb2 as pb
from kuasar.api.gen.ttrpc.ttrpc_pb2 import Request
from kuasar.core.config import Config, Gateway
from kuasar.core.errors import NotFound
from kuasar.core.ttrpc import FrameType, encode_frame
from kuasar.gateway.calls import Call, InFlight, methods_of
from kuasar.gateway.custody import Custody
from kuasar.gateway.grpc_server import make_server
from kuasar.gateway.ttrpc import CallRefused, TtrpcClient
from kuasar.gateway.ttrpc_server import TtrpcServer
from kuasar.supervisor.keeper_client import Keeper

T = TypeVar("T")
SERVICE = pb.DESCRIPTOR.services_by_name["Task"]
NAMESPACE = {"containerd-namespace-ttrpc": "k8s.io"}


class Answers:
    """A service whose answers show what reached it. Every method of the Task API exists; most are never called."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.release = asyncio.Event()

    async def Connect(self, request: pb.ConnectRequest, call: Call) -> pb.ConnectResponse:
        return pb.ConnectResponse(version=f"{call.namespace} {request.id} {call.deadline is not None}")

    async def Kill(self, request: pb.KillRequest, call: Call) -> Empty:
        raise NotFound(f"container {request.id} does not exist")

    async def Pids(self, request: pb.PidsRequest, call: Call) -> pb.PidsResponse:
        raise RuntimeError("a defect")

    async def Start(self, request: pb.StartRequest, call: Call) -> pb.StartResponse:
        self.started.set()
        await self.release.wait()
        return pb.StartResponse(pid=7)

    async def Wait(self, request: pb.WaitRequest, call: Call) -> pb.WaitResponse:
        self.started.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return pb.WaitResponse(exit_status=3)

    def __getattr__(self, name: str) -> Any:
        if name not in SERVICE.methods_by_name:
            raise AttributeError(name)
        return self.Connect


class Served:
    def __init__(self, root: str, limit: int = 100) -> None:
        self.answers = Answers()
        self.path = f"{root}/task.sock"
        self.grpc_path = f"{root}/grpc.sock"
        methods = {SERVICE.full_name: methods_of(SERVICE, self.answers, InFlight(limit))}
        self.custody = Custody(Keeper(f"{root}/no-keeper.sock"))
        self.ttrpc = TtrpcServer(self.path, methods, self.custody, f"{root}/journal")
        self.grpc = make_server(Config(gateway=Gateway(socket=self.grpc_path, max_message_bytes=1 << 20)), methods)
        self.client = TtrpcClient(self.path)

    async def call(self, method: str, request: Any, answer: Any, metadata: dict[str, str] | None = None) -> Any:
        return await self.client.call(
            SERVICE.full_name, method, request, answer, timeout=10, metadata=NAMESPACE if metadata is None else metadata
        )


@asynccontextmanager
async def served(limit: int = 100) -> AsyncIterator[Served]:
    with tempfile.TemporaryDirectory(prefix="kg", dir="/tmp") as root:
        made = Served(root, limit)
        made.ttrpc.start()
        await made.grpc.start()
        try:
            yield made
        finally:
            await made.client.close()
            made.ttrpc.close()
            made.custody.close()
            await made.grpc.stop(None)


def run(scenario: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(30):
            return await scenario

    return asyncio.run(bounded())


def test_both_transports_give_the_same_answers() -> None:
    async def scenario() -> None:
        async with served() as s:
            over_ttrpc = await s.call("Connect", pb.ConnectRequest(id="c1"), pb.ConnectResponse)
            async with grpc.aio.insecure_channel(f"unix:{s.grpc_path}") as channel:
                connect = channel.unary_unary(
                    f"/{SERVICE.full_name}/Connect",
                    request_serializer=pb.ConnectRequest.SerializeToString,
                    response_deserializer=pb.ConnectResponse.FromString,
                )
                over_grpc = await connect(
                    pb.ConnectRequest(id="c1"), metadata=(("containerd-namespace", "k8s.io"),), timeout=10
                )
                assert over_ttrpc.version == over_grpc.version == "k8s.io c1 True"
                assert (
                    await connect(pb.ConnectRequest(id="c"), metadata=(("containerd-namespace", "a"),))
                ).version == ("a c False")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await connect(pb.ConnectRequest(id="x" * (2 << 20)), metadata=(("containerd-namespace", "a"),))
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    run(scenario())


@pytest.mark.parametrize(
    ("method", "metadata", "code", "message"),
    [
        ("Kill", NAMESPACE, grpc.StatusCode.NOT_FOUND, "container c1 does not exist"),
        ("Pids", NAMESPACE, grpc.StatusCode.INTERNAL, "a defect"),
        ("Connect", {}, grpc.StatusCode.INVALID_ARGUMENT, "containerd-namespace-ttrpc: missing"),
        ("Connect", {"containerd-namespace-ttrpc": "../x"}, grpc.StatusCode.INVALID_ARGUMENT, "is not an identifier"),
        ("Fly", NAMESPACE, grpc.StatusCode.UNIMPLEMENTED, "no method 'Fly'"),
    ],
)
def test_errors_have_codes_and_words(
    method: str, metadata: dict[str, str], code: grpc.StatusCode, message: str
) -> None:
    async def scenario() -> None:
        async with served() as s:
            with pytest.raises(CallRefused, match=message) as caught:
                await s.call(method, pb.ConnectRequest(id="c1"), pb.ConnectResponse, metadata)
            assert caught.value.code == code.value[0]
            # the connection goes on
            assert (await s.call("Connect", pb.ConnectRequest(id="c2"), pb.ConnectResponse)).version

    run(scenario())


def test_calls_run_side_by_side_and_the_limit_spares_waits() -> None:
    async def scenario() -> None:
        async with served(limit=1) as s:
            wait = asyncio.create_task(s.call("Wait", pb.WaitRequest(id="c1"), pb.WaitResponse))
            start = asyncio.create_task(s.call("Start", pb.StartRequest(id="c1"), pb.StartResponse))
            await s.answers.started.wait()
            with pytest.raises(CallRefused, match="in flight") as caught:
                while True:  # until the Start is under way
                    await s.call("Connect", pb.ConnectRequest(id="c1"), pb.ConnectResponse)
            assert caught.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
            s.answers.release.set()
            assert (await start).pid == 7
            assert (await wait).exit_status == 3

    run(scenario())


def test_a_wait_ends_with_its_connection() -> None:
    async def scenario() -> None:
        async with served() as s:
            wait = asyncio.create_task(s.call("Wait", pb.WaitRequest(id="c1"), pb.WaitResponse))
            await s.answers.started.wait()
            await s.client.close()
            await s.answers.cancelled.wait()
            with pytest.raises(Exception, match=r"closed|ended|went away|gone"):
                await wait

    run(scenario())


@pytest.mark.parametrize(
    "poison",
    [
        b"\xff" * 10,
        struct.pack(">IIBB", 5 << 20, 1, 1, 0),
        encode_frame(1, FrameType.DATA, b"x"),
        encode_frame(2, FrameType.REQUEST, Request(service="x").SerializeToString()),
    ],
    ids=["unknown type", "too long", "stream data", "even stream"],
)
def test_broken_peers_are_cut_off_and_harm_nobody(poison: bytes) -> None:
    async def scenario() -> None:
        async with served() as s:
            reader, writer = await asyncio.open_unix_connection(s.path)
            writer.write(poison)
            assert await reader.read() == b""
            writer.close()
            assert (await s.call("Connect", pb.ConnectRequest(id="c2"), pb.ConnectResponse)).version

    run(scenario())


def test_a_frame_may_come_in_pieces() -> None:
    async def scenario() -> None:
        async with served() as s:
            reader, writer = await asyncio.open_unix_connection(s.path)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            request = Request(service=SERVICE.full_name, method="Fly")
            for byte in encode_frame(1, FrameType.REQUEST, request.SerializeToString()):
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)
            length, stream, kind, _ = struct.unpack(">IIBB", await reader.readexactly(10))
            assert (stream, kind) == (1, FrameType.RESPONSE)
            assert b"no method" in await reader.readexactly(length)
            writer.close()

    run(scenario())


def test_an_undecodable_request_is_answered() -> None:
    async def scenario() -> None:
        async with served() as s:
            reader, writer = await asyncio.open_unix_connection(s.path)
            request = Request(service=SERVICE.full_name, method="Connect", payload=b"\xff\xff")
            writer.write(encode_frame(1, FrameType.REQUEST, request.SerializeToString()))
            length, _, _, _ = struct.unpack(">IIBB", await reader.readexactly(10))
            assert b"does not decode" in await reader.readexactly(length)
            writer.close()

    run(scenario())
