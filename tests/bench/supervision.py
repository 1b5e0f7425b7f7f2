"""How fast a worker is there, and the bus with many of them: a supervisord, a zygote and a bus of this benchmark's own.

The gateway's place is taken by this process, so that what is measured is the supervisor, the zygote, the worker and
the bus, and nothing of gRPC. Everything lives in a temporary directory and ends with supervisord.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kuasar.bus.messages import Hello
from kuasar.bus.router import BusRouter
from kuasar.core import log
from kuasar.core.config import Config, load
from kuasar.supervisor import render
from kuasar.supervisor.client import SupervisorClient
from tests.bench.contestants import OURS
from tests.bench.plan import Plan, rounds
from tests.bench.pods import Tick
from tests.bench.results import Results

_ROOT = Path(__file__).parents[2]
_PATIENCE = 20.0


def workers(results: Results, plan: Plan, tick: Tick) -> None:
    """Adds ``plan.workers`` workers one after the other, then asks them over the bus in turn."""
    log.configure("error")  # this process is the gateway's side of the bus here, and would tell of every worker
    with tempfile.TemporaryDirectory(prefix="kzb-", dir="/tmp") as directory, _supervisord(directory) as config:
        asyncio.run(_measure(results, plan, config, tick))


@contextlib.contextmanager
def _supervisord(directory: str) -> Iterator[Config]:
    """The shipped supervisord.conf without the gateway, up and with a zygote that listens."""
    toml = Path(directory, "kuasar.toml")
    toml.write_text(
        f'state_dir = "{directory}/s"\nlog_dir = "{directory}/l"\ncache_dir = "{directory}/c"\n'
        f'[supervisor]\nsocket = "{directory}/s/sup.sock"\nzygote = "{directory}/s/zyg.sock"\n'
        f'keeper = "{directory}/s/keep.sock"\n'
    )
    config = load(str(toml))
    render.prepare(config)
    text = render.render((_ROOT / "etc/supervisord.conf").read_text(), config)
    conf = Path(directory, "supervisord.conf")
    conf.write_text(re.sub(r"(?s)\[program:gateway\].*?(?=\n\[|\Z)", "", text))
    process = subprocess.Popen(
        [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(conf)],
        cwd=_ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        _wait_for_line(process.stdout.fileno(), b"zygote announced itself")
        yield config
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=_PATIENCE)
        shutil.rmtree(f"{directory}/s", ignore_errors=True)


def _wait_for_line(fd: int, wanted: bytes) -> None:
    seen = b""
    deadline = time.monotonic() + _PATIENCE
    while wanted not in seen:
        readable, _, _ = select.select([fd], [], [], max(deadline - time.monotonic(), 0))
        data = os.read(fd, 65536) if readable else b""
        if not data:
            raise TimeoutError(f"supervisord did not log {wanted.decode()!r}:\n{seen.decode(errors='replace')}")
        seen += data


@contextlib.asynccontextmanager
async def _bus(config: Config) -> AsyncIterator[BusRouter]:
    router = BusRouter(config.bus_address)
    await router.start()
    try:
        yield router
    finally:
        await router.close()


async def _measure(results: Results, plan: Plan, config: Config, tick: Tick) -> None:
    greeted: dict[str, asyncio.Future[float]] = {}
    loop = asyncio.get_running_loop()

    def on_hello(hello: Hello) -> None:
        if not greeted[hello.sandbox].done():
            greeted[hello.sandbox].set_result(time.perf_counter())

    client = SupervisorClient(config.supervisor.socket)
    async with _bus(config) as router:
        router.on_hello = on_hello
        with ThreadPoolExecutor(1) as thread:
            for number in range(-plan.warmup, plan.workers - plan.warmup):
                sandbox = f"bench{number + plan.warmup}"
                greeted[sandbox] = loop.create_future()
                asked = time.perf_counter()
                await loop.run_in_executor(thread, client.add, sandbox)
                ready = await _greeting(greeted[sandbox], sandbox, config)
                if number >= 0:
                    results.add("worker_ready", OURS, (ready - asked) * 1000)
            tick()
            await _create_all(router, list(greeted))
            await _ask(router, results, plan, "bus", list(greeted))
            await _ask(router, results, plan, "bus.one", [next(iter(greeted))] * len(greeted))
            tick()
            await asyncio.gather(*(_call(router, sandbox, "sandbox.shutdown", {}) for sandbox in greeted))
    client.close()


async def _greeting(greeted: asyncio.Future[float], sandbox: str, config: Config) -> float:
    try:
        return await asyncio.wait_for(greeted, _PATIENCE)
    except TimeoutError:
        log_file = Path(config.sandbox_log_dir, f"{sandbox}.log")
        said = log_file.read_text(errors="replace")[-2000:] if log_file.exists() else "nothing"
        raise TimeoutError(f"worker {sandbox} did not greet within {_PATIENCE:g} s; its log says: {said}") from None


async def _create_all(router: BusRouter, sandboxes: list[str]) -> None:
    """So that the requests below have something to say: recorded sandboxes, in which nothing runs."""
    body = {
        "namespace": "bench",
        "sandboxer": "kuasar-runc",
        "engine": "runc",
        "netns": "",
        "bundle": "",
        "config": {"name": "bench", "namespace": "bench", "uid": "bench", "host_network": True},
    }
    for sandbox in sandboxes:
        await _call(router, sandbox, "sandbox.create", body)


async def _ask(router: BusRouter, results: Results, plan: Plan, key: str, sandboxes: list[str]) -> None:
    """``sandbox.status``, the request that containerd causes most, of one sandbox after the other.

    Fifty workers asked in turn find the processor's caches cold, which is what a node sees; one worker that is asked
    again and again shows what the bus alone takes.
    """
    for number, counts in rounds(200, plan.bus_seconds, warmup=2):
        for sandbox in sandboxes:
            asked = time.perf_counter()
            await _call(router, sandbox, "sandbox.status", {"verbose": False})
            if counts:
                results.add(key, OURS, (time.perf_counter() - asked) * 1e6)
        if number % 10 == 9:
            await asyncio.sleep(0)


async def _call(router: BusRouter, sandbox: str, op: str, body: dict[str, Any]) -> None:
    await router.call(sandbox, op, body, deadline=time.monotonic() + _PATIENCE)
