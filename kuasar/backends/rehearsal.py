"""What a guest does before it becomes a template: it cleans up, and does once what its clones will be asked first."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from kuasar.agent.client import AgentClient
from kuasar.core.aio import Loop
from kuasar.core.errors import NotFound

OpenChannel = Callable[[float], Awaitable[AgentClient]]
_SETTLE_SECONDS = 0.05


async def prepare(
    loop: Loop, open_channel: OpenChannel, started: float, say: Callable[[str], None], deadline: float
) -> float:
    """Have the guest of a machine that was ``started`` then (monotonic) made ready to be kept; gives how long its agent
    took to answer, in seconds. Raises :class:`KuasarError`."""
    agent = await open_channel(deadline)
    seconds = time.monotonic() - started
    say(f"its agent answered after {seconds:.1f} s; the guest cleans up")
    await agent.call("guest.rest", {}, deadline=deadline)
    agent.close()
    await rehearse(open_channel, deadline)
    await loop.sleep(_SETTLE_SECONDS)  # the guest sees the end of the connection
    return seconds


async def rehearse(open_channel: OpenChannel, deadline: float) -> None:
    """Have the guest do once what every clone is asked first: what that needs is in its memory then, and not on its
    disk. Nothing of it lasts: a clone gets another identity, and no boot id is made."""
    agent = await open_channel(deadline)
    try:
        identity = {"machine_id": "7" * 32, "hostname": "template", "entropy": bytes(64), "rehearsal": True}
        await agent.call("guest.identity", {"time_ns": time.time_ns(), **identity}, deadline=deadline)
        await agent.call("guest.clock", {"time_ns": time.time_ns()}, deadline=deadline)
        await agent.call("network", {"interfaces": [], "routes": [], "neighbours": []}, deadline=deadline)
        await agent.call("setup", {"hostname": "template", "sysctls": {}, "shm_bytes": 0}, deadline=deadline)
        with suppress(NotFound):
            await agent.call("task.state", {"id": "rehearsal", "exec_id": ""}, deadline=deadline)
    finally:
        agent.close()
