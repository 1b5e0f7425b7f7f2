"""A gateway for tests: makes calls, says what it did, and lives until it is killed.

``python -m tests.integration.bus.gateway ADDRESS SANDBOX``
"""

from __future__ import annotations

import asyncio
import sys

from kuasar.bus.router import BusRouter


async def serve(address: str, sandbox: str) -> None:
    """One call that is answered, two that are not: the parent kills us while they are under way."""
    router = BusRouter(address)
    await router.start()
    await router.wait_link(sandbox)
    await router.call(sandbox, "test.count", {}, key=f"{router.epoch}.1")
    await router.call(sandbox, "test.publish", {"first": 1, "count": 3}, key=f"{router.epoch}.2")
    hanging = [
        asyncio.ensure_future(router.call(sandbox, "test.count", {"seconds": 0.3}, key=f"{router.epoch}.3")),
        asyncio.ensure_future(router.call(sandbox, "test.hang", {})),
    ]
    await router.call(sandbox, "test.echo", {})  # behind them in the same queue: they have arrived
    sys.stdout.write(f"{router.epoch}\n")
    sys.stdout.flush()
    await asyncio.gather(*hanging)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2]))
