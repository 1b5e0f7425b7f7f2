"""The process that serves ttrpc is killed again and again; its clients do not notice, but for a little longer wait."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from kuasar.api.gen.containerd.task.v3 import task_pb2 as pb
from kuasar.api.gen.ttrpc.ttrpc_pb2 import KeyValue, Request, Response
from kuasar.core.ttrpc import FrameType, encode_frame
from kuasar.gateway.ttrpc import read_frame
from kuasar.supervisor.keeper_client import Keeper
from tests.deadline import eventually
from tests.failpoints import arm, disarm
from tests.integration.gateway.resumable import SERVICE

ROOT = Path(__file__).parents[3]
PATIENCE = 60.0
NAMESPACE = [KeyValue(key="containerd-namespace-ttrpc", value="k8s.io")]


class Processes:
    """A keeper and the server, each to be killed and started again."""

    def __init__(self, root: str) -> None:
        self.root = root
        os.makedirs(f"{root}/ended")
        config = Path(root, "kuasar.toml")
        config.write_text(f'state_dir = "{root}/s"\n[supervisor]\nkeeper = "{root}/s/keep.sock"\n')
        self._keeper_command = ["kuasar.supervisor.keeper", "--config", str(config)]
        self.keeper = self._start(*self._keeper_command)
        self.server = self._start("tests.integration.gateway.resumable", root)

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        log = open(f"{self.root}/log", "ab")  # noqa: SIM115 - the child has it
        with log:
            return subprocess.Popen(
                [sys.executable, "-m", *words], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill_server(self) -> None:
        self.server.kill()
        self.server.wait()
        self.server = self._start("tests.integration.gateway.resumable", self.root)

    def kill_keeper(self) -> None:
        self.keeper.kill()
        self.keeper.wait()
        self.keeper = self._start(*self._keeper_command)

    def end(self) -> None:
        for process in (self.server, self.keeper):
            process.kill()
            process.wait()

    @property
    def log(self) -> str:
        return Path(self.root, "log").read_text()

    def kept(self) -> list[str]:
        """What the keeper has; empty while it is away."""
        keeper = Keeper(f"{self.root}/s/keep.sock")
        try:
            return keeper.list("gateway/")
        except Exception:
            return []
        finally:
            keeper.close()


class Client:
    """A connection that remembers what it has asked, and takes whatever answer comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.answers: dict[int, Response] = {}
        self.more = asyncio.Event()
        self._stream = -1
        self._receiver = asyncio.create_task(self._receive())

    async def _receive(self) -> None:
        while frame := await read_frame(self.reader):
            header, data = frame
            assert header.type is FrameType.RESPONSE
            assert header.stream not in self.answers, f"stream {header.stream} was answered twice"
            self.answers[header.stream] = Response.FromString(data)
            self.more.set()

    async def ask(self, method: str, message: Message, timeout_nano: int = 0) -> int:
        """Sends a request and gives its stream."""
        self._stream += 2
        request = Request(
            service=SERVICE.full_name,
            method=method,
            payload=message.SerializeToString(),
            metadata=NAMESPACE,
            timeout_nano=timeout_nano,
        )
        self.writer.write(encode_frame(self._stream, FrameType.REQUEST, request.SerializeToString()))
        await self.writer.drain()
        return self._stream

    async def until(self, count: int) -> None:
        """Until so many answers have come."""
        while len(self.answers) < count:
            assert not self._receiver.done(), "the connection broke"
            self.more.clear()
            await asyncio.wait(
                [self._receiver, asyncio.ensure_future(self.more.wait())], return_when=asyncio.FIRST_COMPLETED
            )

    async def answer(self, stream: int) -> Response:
        while stream not in self.answers:
            await self.until(len(self.answers) + 1)
        return self.answers[stream]

    async def close(self) -> None:
        self._receiver.cancel()
        self.writer.close()
        await asyncio.wait([self._receiver])


@contextmanager
def processes() -> Iterator[Processes]:
    with tempfile.TemporaryDirectory(prefix="kg", dir="/tmp") as root:
        started = Processes(root)
        try:
            eventually(lambda: os.path.exists(f"{root}/task.sock"), "it listens", timeout=PATIENCE)
            yield started
        except BaseException:
            print(started.log)
            raise
        finally:
            started.end()


@asynccontextmanager
async def connected(p: Processes) -> AsyncIterator[Client]:
    client = Client(*await asyncio.open_unix_connection(f"{p.root}/task.sock"))
    try:
        yield client
    finally:
        await client.close()


async def until_kept(p: Processes, count: int) -> None:
    """Until the keeper has that many things of ours."""
    await asyncio.to_thread(
        eventually, p.kept, "it has everything", timeout=PATIENCE, until=lambda kept: len(kept) == count
    )


def run(scenario: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            await scenario

    asyncio.run(bounded())


def change(name: str, size: int) -> pb.ExecProcessRequest:
    return pb.ExecProcessRequest(id=name, spec=AnyMessage(value=bytes(size)))


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_under_load_every_request_is_answered_once(seed: int) -> None:
    """Requests and answers of all sizes, many at a time on several connections; those of 1 MiB fit into no buffer."""
    rng = random.Random(seed)
    kills, calls = 6, 120

    async def load(client: Client, number: int) -> None:
        for n in range(calls):
            size = rng.choice([0, 10, 3000, 70_000, 1 << 20])
            if n % 2:
                await client.ask("Exec", change(f"c{number}-{n}", size))
            else:
                await client.ask("Connect", pb.ConnectRequest(id=f"{size}{n % 10}"))
            await client.until(n - 20)

    async def scenario(p: Processes) -> None:
        async with connected(p) as one, connected(p) as two, connected(p) as three:
            clients = [one, two, three]
            wait = await one.ask("Wait", pb.WaitRequest(id="w"))
            loads = [asyncio.create_task(load(client, number)) for number, client in enumerate(clients)]
            for kill in range(1, kills + 1):
                await rng.choice(clients).until(kill * calls // (kills + 2) + rng.randrange(8))
                p.kill_server()
            await asyncio.gather(*loads)
            await one.until(calls)
            assert wait not in one.answers
            await two.ask("Kill", pb.KillRequest(id="w"))
            assert pb.WaitResponse.FromString((await one.answer(wait)).payload).exit_status == 7
            for client in clients:
                await client.until(calls + (client is not three))
                assert not [answer for answer in client.answers.values() if answer.status.code]
                for stream, answer in client.answers.items():
                    if answer.payload and stream != wait:
                        version = pb.ConnectResponse.FromString(answer.payload).version
                        assert version == version[:1] * len(version)
        done = [line.split() for line in Path(p.root, "done").read_text().splitlines()]
        assert len({key for key, _, _ in done}) == len(done) == 3 * calls // 2
        assert {name for _, name, _ in done} == {f"c{c}-{n}" for c in range(3) for n in range(1, calls, 2)}

    with processes() as p:
        run(scenario(p))
        eventually(lambda: p.kept() == ["gateway/listener", "gateway/spool"], "the connections are given up")
        eventually(lambda: os.listdir(f"{p.root}/journal") == [], "their logs are gone")


def test_a_peer_that_reads_late_gets_every_byte() -> None:
    """The answer fits into no buffer; whoever writes it is killed while it waits to go on."""

    async def scenario(p: Processes) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as peer:
            peer.setblocking(False)
            await loop.sock_connect(peer, f"{p.root}/task.sock")
            request = Request(
                service=SERVICE.full_name,
                method="Connect",
                payload=pb.ConnectRequest(id="3000000x").SerializeToString(),
                metadata=NAMESPACE,
            )
            await loop.sock_sendall(peer, encode_frame(1, FrameType.REQUEST, request.SerializeToString()))
            response = Response(payload=pb.ConnectResponse(version="x" * 3_000_000).SerializeToString())
            frame = encode_frame(1, FrameType.RESPONSE, response.SerializeToString())
            got = await loop.sock_recv(peer, 10)  # something is there, so the answer is being sent
            while len(got) < len(frame):
                if len(got) < 2_000_000:
                    p.kill_server()
                for _ in range(8):
                    if len(got) < len(frame):
                        got += await loop.sock_recv(peer, 65536)
            assert got == frame

    with processes() as p:
        run(scenario(p))


def test_the_keeper_is_killed_in_between() -> None:
    async def scenario(p: Processes) -> None:
        async with connected(p) as client, connected(p) as other:
            wait = await client.ask("Wait", pb.WaitRequest(id="w"))
            for round_ in range(3):
                await other.answer(await other.ask("Connect", pb.ConnectRequest(id="1x")))
                before = p.kept()
                p.kill_keeper()
                await other.answer(await other.ask("Connect", pb.ConnectRequest(id="2y")))
                # connections made while it is away are handed over, too
                async with connected(p) as late:
                    await late.answer(await late.ask("Connect", pb.ConnectRequest(id="3z")))
                    await until_kept(p, len(before) + 1)
                    p.kill_server()
                    await late.answer(await late.ask("Exec", change(f"late{round_}", 1)))
            await other.ask("Kill", pb.KillRequest(id="w"))
            assert pb.WaitResponse.FromString((await client.answer(wait)).payload).exit_status == 7

    with processes() as p:
        run(scenario(p))


@pytest.mark.parametrize(
    "point",
    [
        "gateway.connection.accepted",
        "gateway.request.seen",
        "gateway.request.recorded",
        "gateway.request.consumed",
        "gateway.request.done",
        "gateway.answer.placed",
        "gateway.answer.sent",
    ],
)
def test_it_dies_at_every_step(point: str) -> None:
    """Of a request that comes in parts, and of an answer that leaves in parts."""

    async def until_killed(p: Processes) -> None:
        await asyncio.to_thread(p.server.wait, PATIENCE)
        p.kill_server()

    async def scenario(p: Processes) -> None:
        for skip in range(3):
            arm(f"{p.root}/failpoints", point, f"kill skip={skip} times=1")
            async with connected(p) as client:
                asks = [
                    asyncio.create_task(client.ask("Exec", change(f"c{skip}", 300_000))),
                    asyncio.create_task(client.ask("Connect", pb.ConnectRequest(id="1000000x"))),
                    asyncio.create_task(client.ask("Connect", pb.ConnectRequest(id="1y"))),
                ]
                others = []
                if point == "gateway.connection.accepted":
                    others = [await asyncio.open_unix_connection(f"{p.root}/task.sock") for _ in range(skip)]
                await until_killed(p)
                for ask in asks:
                    answer = await client.answer(await ask)
                    assert not answer.status.code, answer
                version = pb.ConnectResponse.FromString(client.answers[3].payload).version
                assert version == "x" * 1_000_000
                for _, writer in others:
                    writer.close()
            disarm(f"{p.root}/failpoints", point)
        names = [line.split()[1] for line in Path(p.root, "done").read_text().splitlines()]
        assert names == ["c0", "c1", "c2"]

    with processes() as p:
        run(scenario(p))


def test_many_connections_are_taken_over() -> None:
    """As of a full node: one for each container, each with a Wait."""
    many = 400

    async def scenario(p: Processes) -> None:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connected(p)) for _ in range(many)]
            waits = [await client.ask("Wait", pb.WaitRequest(id=f"w{n}")) for n, client in enumerate(clients)]
            for client in clients:
                await client.answer(await client.ask("Connect", pb.ConnectRequest(id="1x")))
            p.kill_server()
            for n, client in enumerate(clients):
                await client.ask("Kill", pb.KillRequest(id=f"w{n}"))
            for wait, client in zip(waits, clients, strict=True):
                assert pb.WaitResponse.FromString((await client.answer(wait)).payload).exit_status == 7

    with processes() as p:
        run(scenario(p))
        assert f"connections={many} unanswered={many}" in p.log


def test_a_connection_made_while_nobody_serves_is_served() -> None:
    async def scenario(p: Processes) -> None:
        p.server.kill()
        p.server.wait()
        async with connected(p) as client:
            stream = await client.ask("Connect", pb.ConnectRequest(id="1x"))
            p.kill_server()
            assert pb.ConnectResponse.FromString((await client.answer(stream)).payload).version == "x"

    with processes() as p:
        run(scenario(p))


def test_a_damaged_log_ends_its_connection_only() -> None:
    async def scenario(p: Processes) -> None:
        async with connected(p) as client, connected(p) as other:
            await client.answer(await client.ask("Connect", pb.ConnectRequest(id="1x")))
            name = min(os.listdir(f"{p.root}/journal"))  # they count on, and this one was made first
            await other.answer(await other.ask("Connect", pb.ConnectRequest(id="1x")))
            wait = await client.ask("Wait", pb.WaitRequest(id="w"))
            path = Path(p.root, "journal", name)
            await asyncio.to_thread(eventually, lambda: b"Wait" in path.read_bytes(), "it is written down")
            p.server.kill()
            p.server.wait()
            path.write_bytes(path.read_bytes()[:8] + b"\x01\x00\x00\x00\xff?" + path.read_bytes()[8:])
            p.kill_server()
            with pytest.raises(AssertionError, match="the connection broke"):
                await client.answer(wait)
            await other.answer(await other.ask("Connect", pb.ConnectRequest(id="1x")))

    with processes() as p:
        run(scenario(p))
        assert "a connection of our predecessor is lost" in p.log
