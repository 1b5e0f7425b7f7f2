"""Running a test's coroutine within bounds, and waiting for conditions without sleeping blindly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from kuasar.bus.router import BusRouter

PATIENCE = 20.0


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run it to its end, which must come within the patience."""

    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            await test

    asyncio.run(bounded())


def soon(seconds: float = PATIENCE) -> float:
    """A deadline on CLOCK_MONOTONIC."""
    return time.monotonic() + seconds


@asynccontextmanager
async def serving(address: str, **options: Any) -> AsyncIterator[BusRouter]:
    """A router that serves ``address``."""
    router = BusRouter(address, **options)
    await router.start()
    try:
        yield router
    finally:
        await router.close()


async def until(condition: Callable[[], bool]) -> None:
    """Until it is true of what other processes do; the test's patience bounds it."""
    while not condition():
        await asyncio.sleep(0.005)
