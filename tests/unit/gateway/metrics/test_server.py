"""The HTTP server of the metrics, over both kinds of sockets, also with those who speak something else."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kuasar.core.errors import Unavailable
from kuasar.gateway.metrics import catalogue as c
from kuasar.gateway.metrics.exposition import render
from kuasar.gateway.metrics.server import MOST_CONNECTIONS, MetricsServer
from kuasar.gateway.metrics.tallies import Histogram, Values
from tests.scraping import SECONDS, Answer, Scrape, ask

VALUES: Values = {
    c.SANDBOXES: {("runc", "ready"): 3.0},
    c.RPC_ERRORS: {("Task.State", "not_found"): 2.0},
    c.START: {("runc", "fork"): Histogram(c.START.bounds, [1] * (len(c.START.bounds) + 1), 4.5)},
}


async def scrape(accept: str) -> tuple[bytes, str]:
    return render(dict(VALUES), accept)


def serving(
    listen: str, use: Callable[[], Awaitable[None]], scraping: Callable[..., Awaitable[tuple[bytes, str]]] = scrape
) -> None:
    async def main() -> None:
        server = MetricsServer(listen, scraping)
        await server.start()
        try:
            await use()
        finally:
            await server.close()

    asyncio.run(main())


async def asked(listen: str, method: str = "GET", path: str = "/metrics", accept: str = "") -> Answer:
    return await asyncio.to_thread(ask, listen, method, path, accept)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_prometheus_reads_it(kind: str, tmp_path: Path) -> None:
    listen = f"unix:{tmp_path}/m.sock" if kind == "unix" else f"127.0.0.1:{free_port()}"

    async def use() -> None:
        answer = await asked(listen)
        assert answer.status == 200
        assert answer.content_type.startswith("text/plain; version=")
        found = Scrape(answer.text)
        assert found.value("kuasar_sandboxes", engine="runc", state="ready") == 3
        assert found.value("kuasar_rpc_errors_total", method="Task.State", error="not_found") == 2
        fork = {"engine": "runc", "path": "fork"}
        assert found.value("kuasar_sandbox_start_seconds_bucket", le="0.001", **fork) == 1
        assert found.value("kuasar_sandbox_start_seconds_bucket", le="+Inf", **fork) == len(c.START.bounds) + 1
        assert found.value("kuasar_sandbox_start_seconds_sum", **fork) == 4.5
        assert found.value("process_open_fds") > 0
        assert found.value("process_max_fds") > 0
        assert found.value("process_cpu_seconds_total") > 0
        assert found.value("process_resident_memory_bytes") > 0
        assert (
            "application/openmetrics-text" in (await asked(listen, accept="application/openmetrics-text")).content_type
        )

    serving(listen, use)
    assert not os.path.exists(f"{tmp_path}/m.sock")


def test_what_is_not_served(tmp_path: Path) -> None:
    listen = f"unix:{tmp_path}/m.sock"

    async def use() -> None:
        assert os.stat(f"{tmp_path}/m.sock").st_mode & 0o777 == 0o600
        assert (await asked(listen, path="/")).status == 404
        assert (await asked(listen, path="/metrics?format=x")).status == 200
        assert (await asked(listen, "POST")).status == 405
        head = await asked(listen, "HEAD")
        assert (head.status, head.text) == (200, "")

    serving(listen, use)


def test_a_connection_is_kept_and_rubbish_is_not(tmp_path: Path) -> None:
    path = f"{tmp_path}/m.sock"

    async def use() -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        for _ in range(2):
            writer.write(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            length = next(
                int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length")
            )
            await reader.readexactly(length)
        writer.close()
        for rubbish in (b"\0\1\2\r\n\r\n", b"GET / HTTP/1.1\r\nx: " + b"a" * 100_000 + b"\r\n\r\n"):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(rubbish)
            assert await reader.read() == b""
            writer.close()
        assert (await asked(f"unix:{path}")).status == 200

    serving(f"unix:{path}", use)


def test_those_who_only_connect_shut_nobody_out_for_ever(tmp_path: Path) -> None:
    path = f"{tmp_path}/m.sock"

    async def use() -> None:
        held = [await asyncio.open_unix_connection(path) for _ in range(MOST_CONNECTIONS)]
        reader, writer = await asyncio.open_unix_connection(path)
        assert await reader.read() == b""  # one too many
        for _, other in (*held, (reader, writer)):
            other.close()
        async with asyncio.timeout(SECONDS):
            while not await answered():
                await asyncio.sleep(0)

    async def answered() -> bool:
        try:
            return (await asked(f"unix:{path}")).status == 200
        except OSError:  # they have not all been noticed yet
            return False

    serving(f"unix:{path}", use)


def test_a_scrape_that_fails_says_so(tmp_path: Path) -> None:
    listen = f"unix:{tmp_path}/m.sock"

    async def fail(accept: str) -> tuple[bytes, str]:
        raise OSError(24, "Too many open files")

    async def use() -> None:
        answer = await asked(listen)
        assert answer.status == 500
        assert "Too many open files" in answer.text

    serving(listen, use, fail)


def test_a_socket_that_a_dead_gateway_left_is_taken(tmp_path: Path) -> None:
    path = f"{tmp_path}/m.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)

    async def use() -> None:
        assert (await asked(f"unix:{path}")).status == 200

    serving(f"unix:{path}", use)


@pytest.mark.parametrize("listen", ["unix:{directory}", "127.0.0.1:{taken}"])
def test_a_place_that_cannot_be_had(listen: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = listen.format(directory=tmp_path, taken=taken.getsockname()[1])
        with pytest.raises(Unavailable, match=r"metrics\.listen"):
            asyncio.run(MetricsServer(place, scrape).start())
