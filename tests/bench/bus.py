"""The bus by itself: the real router here, real dealers in processes that are forked off one, nothing else in between.

``python -m tests.bench.bus [seconds]`` prints a table; :func:`measure` gives the same as a map for whoever collects.
Round trips are of a 200-byte echo with a key for every call, as changes have. ``turn`` asks one worker after the other,
so that each has slept since its last request; ``again`` asks one worker; ``windows`` keeps requests under way.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kuasar.bus.router import BusRouter
from kuasar.core import log
from tests.bench.results import quantile

_ROOT = Path(__file__).parents[2]
_BODY = {"payload": bytes(200)}
_PATIENCE = 20.0
_WARM_UP = 200


def measure(workers: Sequence[int] = (1, 50), seconds: float = 3.0) -> dict[str, float]:
    """Medians and 95th percentiles in microseconds, throughput in requests per second, by number of workers."""
    log.configure("error")
    found: dict[str, float] = {}
    for count in workers:
        found |= {f"{name}.{count}": value for name, value in asyncio.run(_measure(count, seconds)).items()}
    return found


@asynccontextmanager
async def _stage(count: int) -> AsyncIterator[tuple[BusRouter, list[str]]]:
    with tempfile.TemporaryDirectory(prefix="kuasar-bench-") as directory:
        router = BusRouter(f"ipc://{directory}/bus.sock")
        await router.start()
        forking = [sys.executable, "-m", "tests.integration.bus.worker", "--fork"]
        process = subprocess.Popen(
            [*forking, f"ipc://{directory}/bus.sock", "w", str(count), directory], stdin=subprocess.PIPE, cwd=_ROOT
        )
        assert process.stdin is not None
        try:
            names = [f"w{n}" for n in range(count)]
            for name in names:
                await router.wait_link(name, time.monotonic() + _PATIENCE)
            yield router, names
        finally:
            await router.close()
            process.stdin.close()
            process.wait(_PATIENCE)


async def _measure(count: int, seconds: float) -> dict[str, float]:
    async with _stage(count) as (router, names):
        turn = await _round_trips(router, names, seconds)
        again = await _round_trips(router, names[:1], seconds / 2)
        before, started = os.times(), time.monotonic()
        one_each = await _windows(router, names, 1, seconds)
        after = os.times()
        busy = (after.user + after.system - before.user - before.system) / (time.monotonic() - started)
        window = await _windows(router, names[:1], 32, seconds / 2)
    return {
        "turn p50 us": quantile(turn, 0.5),
        "turn p95 us": quantile(turn, 0.95),
        "again p50 us": quantile(again, 0.5),
        "again p95 us": quantile(again, 0.95),
        "one each req/s": one_each,
        "one each, gateway cpu": busy,
        "32 of one req/s": window,
    }


async def _round_trips(router: BusRouter, names: Sequence[str], seconds: float) -> list[float]:
    """Microseconds of each, one at a time."""
    samples = []
    until = time.monotonic() + seconds
    number = 0
    while time.monotonic() < until or number <= _WARM_UP:
        started = time.perf_counter()
        await _echo(router, names[number % len(names)])
        samples.append((time.perf_counter() - started) * 1e6)
        number += 1
    return samples[_WARM_UP:]


async def _windows(router: BusRouter, names: Sequence[str], width: int, seconds: float) -> float:
    """Requests per second with ``width`` of each worker under way all the time."""
    until = time.monotonic() + seconds
    answered = 0

    async def ask(name: str) -> None:
        nonlocal answered
        while time.monotonic() < until:
            await _echo(router, name)
            answered += 1

    started = time.monotonic()
    await asyncio.gather(*(ask(name) for name in names for _ in range(width)))
    return answered / (time.monotonic() - started)


_keys = iter(range(1 << 62))


async def _echo(router: BusRouter, name: str) -> dict[str, Any]:
    return await router.call(name, "test.echo", _BODY, key=f"k{next(_keys)}", deadline=time.monotonic() + _PATIENCE)


def main() -> None:
    """Print what was measured."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    sys.stdout.write(f"load average {os.getloadavg()[0]:.1f}\n")
    for name, value in measure(seconds=seconds).items():
        sys.stdout.write(f"{name:32} {value:10.2f}\n")


if __name__ == "__main__":
    main()
