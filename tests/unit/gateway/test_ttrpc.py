"""The ttrpc codec against bytes, and the client against a real server on a unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuasar.api.gen.containerd.task.v3.task_pb2 import StateRequest, StateResponse
from kuasar.api.gen.ttrpc.ttrpc_pb2 import Request, Response
from kuasar.core import errors
from kuasar.core import ttrpc as frames
from kuasar.gateway import ttrpc
from tests.unit.gateway.ttrpc_peer import TtrpcPeer, refusal

SERVICE = "containerd.task.v3.Task"


def run(test: Awaitable[None]) -> None:
    """Runs a test's coroutine, which must end within ten seconds."""

    async def bounded() -> None:
        async with asyncio.timeout(10):
            await test

    asyncio.run(bounded())


async def state(
    client: ttrpc.TtrpcClient, container: str = "c", timeout: float = 5, metadata: dict[str, str] | None = None
) -> StateResponse:
    return await client.call(
        SERVICE, "State", StateRequest(id=container), StateResponse, timeout=timeout, metadata=metadata
    )


async def echo(request: Request) -> Response:
    container = StateRequest.FromString(request.payload).id
    return Response(payload=StateResponse(id=container, pid=7).SerializeToString())


def reader_of(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


# --- codec


def test_a_frame_as_bytes() -> None:
    frame = frames.encode_frame(5, frames.FrameType.REQUEST, b"abc", flags=2)
    assert frame == b"\x00\x00\x00\x03\x00\x00\x00\x05\x01\x02abc"


def test_frames_are_read_one_by_one_until_the_peer_closes() -> None:
    async def test() -> None:
        reader = reader_of(
            frames.encode_frame(1, frames.FrameType.REQUEST, b"a")
            + frames.encode_frame(2**32 - 1, frames.FrameType.RESPONSE, b"")
        )
        assert await ttrpc.read_frame(reader) == (frames.Header(1, 1, frames.FrameType.REQUEST, 0), b"a")
        assert await ttrpc.read_frame(reader) == (frames.Header(0, 2**32 - 1, frames.FrameType.RESPONSE, 0), b"")
        assert await ttrpc.read_frame(reader) is None

    run(test())


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        (b"\x00\x00\x00\x01\x00\x00\x00\x01\x04\x00", "unknown type 4"),
        (b"\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00", "unknown type 0"),
        (b"\x00\x40\x00\x01\x00\x00\x00\x01\x01\x00", "4194305 bytes, more than 4194304"),
        (b"\x00\x00\x00", "3 of 10 bytes"),
        (b"\x00\x00\x00\x05\x00\x00\x00\x01\x01\x00ab", "2 of 5 bytes"),
    ],
)
def test_damaged_frames(wire: bytes, message: str) -> None:
    async def test() -> None:
        with pytest.raises(frames.ProtocolError, match=message):
            await ttrpc.read_frame(reader_of(wire))

    run(test())


@given(st.binary(max_size=64))
def test_any_bytes_are_a_frame_an_end_or_a_protocol_error(wire: bytes) -> None:
    async def test() -> None:
        try:
            frame = await ttrpc.read_frame(reader_of(wire))
        except frames.ProtocolError:
            return
        if frame is None:
            assert wire == b""
            return
        header, data = frame
        assert wire.startswith(frames.encode_frame(header.stream, header.type, data, header.flags))

    asyncio.run(test())


def test_largest_message_and_one_byte_more() -> None:
    assert len(frames.encode_frame(1, frames.FrameType.DATA, bytes(4 << 20))) == (4 << 20) + 10
    with pytest.raises(errors.ResourceExhausted, match="4194305"):
        frames.encode_frame(1, frames.FrameType.DATA, bytes((4 << 20) + 1))


# --- client


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


def with_peer(
    path: Path,
    handler: Callable[[Request], Awaitable[Response]],
    test: Callable[[TtrpcPeer, ttrpc.TtrpcClient], Awaitable[None]],
) -> None:
    async def body() -> None:
        async with TtrpcPeer(path, handler) as peer:
            client = ttrpc.TtrpcClient(str(path))
            try:
                await test(peer, client)
            finally:
                await client.close()

    run(body())


def test_a_call_carries_its_name_payload_deadline_and_metadata(path: Path) -> None:
    async def test(peer: TtrpcPeer, client: ttrpc.TtrpcClient) -> None:
        answer = await state(client, "mine", timeout=5, metadata={"containerd-namespace-ttrpc": "k8s.io"})
        assert (answer.id, answer.pid) == ("mine", 7)
        [request] = peer.requests
        assert (request.service, request.method) == (SERVICE, "State")
        assert 0 < request.timeout_nano <= 5_000_000_000
        assert [(pair.key, pair.value) for pair in request.metadata] == [("containerd-namespace-ttrpc", "k8s.io")]

    with_peer(path, echo, test)


def test_answers_find_their_calls_in_any_order_on_one_connection(path: Path) -> None:
    arrived: list[str] = []
    all_there = asyncio.Event()

    async def reversing(request: Request) -> Response:
        # Each call is answered only after all have arrived, the last first.
        name = StateRequest.FromString(request.payload).id
        arrived.append(name)
        if len(arrived) == 20:
            all_there.set()
        await all_there.wait()
        for _ in range(20 - arrived.index(name)):
            await asyncio.sleep(0)
        return await echo(request)

    async def test(peer: TtrpcPeer, client: ttrpc.TtrpcClient) -> None:
        names = [f"c{number}" for number in range(20)]
        answers = await asyncio.gather(*(state(client, name) for name in names))
        assert [answer.id for answer in answers] == names
        assert arrived == names
        assert peer.connections == 1

    with_peer(path, reversing, test)


def test_a_refusal_carries_code_and_words(path: Path) -> None:
    async def no(_: Request) -> Response:
        return refusal(5, "no such container")

    async def test(_: TtrpcPeer, client: ttrpc.TtrpcClient) -> None:
        with pytest.raises(ttrpc.CallRefused, match=r"containerd\.task\.v3\.Task/State: no such container") as caught:
            await state(client)
        assert caught.value.code == 5

    with_peer(path, no, test)


def test_no_server_is_unavailable_and_names_the_socket(path: Path) -> None:
    async def test() -> None:
        with pytest.raises(errors.Unavailable, match=f"{path}: No such file"):
            await state(ttrpc.TtrpcClient(str(path)))

    run(test())


def test_a_deadline_ends_the_call_and_its_late_answer_harms_nobody(path: Path) -> None:
    release = asyncio.Event()

    async def late(request: Request) -> Response:
        if StateRequest.FromString(request.payload).id == "late":
            await release.wait()
        return await echo(request)

    async def test(peer: TtrpcPeer, client: ttrpc.TtrpcClient) -> None:
        with pytest.raises(errors.DeadlineExceeded, match=r"State on .*: no answer in 0\.05 s"):
            await state(client, "late", timeout=0.05)
        release.set()
        assert (await state(client, "next")).id == "next"
        assert (await state(client, "last")).id == "last"
        assert peer.connections == 1

    with_peer(path, late, test)


def test_when_the_server_hangs_up_every_open_call_fails_and_the_next_dials_again(path: Path) -> None:
    both = asyncio.Event()

    async def hang_up(request: Request) -> Response:
        if peers[0].connections > 1:
            return await echo(request)
        if len(peers[0].requests) == 2:
            both.set()
        return await asyncio.Future[Response]()

    peers: list[TtrpcPeer] = []

    async def test(peer: TtrpcPeer, client: ttrpc.TtrpcClient) -> None:
        peers.append(peer)
        calls = [asyncio.create_task(state(client)) for _ in range(2)]
        await both.wait()
        peer.hang_up()
        for call in calls:
            with pytest.raises(errors.Unavailable, match="closed the connection"):
                await call
        assert (await state(client, "again")).id == "again"
        assert peer.connections == 2

    with_peer(path, hang_up, test)


def test_closing_the_client_fails_its_open_calls(path: Path) -> None:
    arrived = asyncio.Event()

    async def never(_: Request) -> Response:
        arrived.set()
        return await asyncio.Future[Response]()

    async def test(_: TtrpcPeer, client: ttrpc.TtrpcClient) -> None:
        call = asyncio.create_task(state(client))
        await arrived.wait()
        await client.close()
        with pytest.raises(errors.Unavailable, match="closed on this side"):
            await call
        await client.close()

    with_peer(path, never, test)


def test_a_request_too_large_is_refused_here_and_the_connection_lives_on(path: Path) -> None:
    async def test(peer: TtrpcPeer, client: ttrpc.TtrpcClient) -> None:
        with pytest.raises(errors.ResourceExhausted):
            await state(client, "x" * (4 << 20))
        assert (await state(client)).id == "c"
        assert (len(peer.requests), peer.connections) == (1, 1)

    with_peer(path, echo, test)


def test_an_answer_that_does_not_decode_is_a_protocol_error(path: Path) -> None:
    async def nonsense(_: Request) -> Response:
        return Response(payload=b"\x0a\x7f")

    async def test(_: TtrpcPeer, client: ttrpc.TtrpcClient) -> None:
        with pytest.raises(frames.ProtocolError, match=r"payload is not a containerd\.task\.v3\.StateResponse"):
            await state(client)

    with_peer(path, nonsense, test)


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        (frames.encode_frame(1, frames.FrameType.DATA, b""), "DATA frame for a unary call"),
        (frames.encode_frame(3, frames.FrameType.RESPONSE, b""), "stream 3, never opened"),
        (frames.encode_frame(2, frames.FrameType.RESPONSE, b""), "stream 2, never opened"),
        (b"\xff" * 10, "unknown type 255"),
    ],
)
def test_a_server_that_breaks_the_protocol_ends_the_connection(path: Path, wire: bytes, message: str) -> None:
    async def test() -> None:
        hung_up: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await ttrpc.read_frame(reader)
            writer.write(wire)
            await writer.drain()
            hung_up.set_result(await reader.read() == b"")
            writer.close()

        async with await asyncio.start_unix_server(serve, path):
            client = ttrpc.TtrpcClient(str(path))
            with pytest.raises(errors.Unavailable, match=message):
                await state(client)
            assert await hung_up  # before close: the damage alone ends it
            await client.close()

    run(test())
