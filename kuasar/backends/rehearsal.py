"""What a guest does once before it becomes a template: everything that its clones will be asked first."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from kuasar.agent.client import AgentClient
from kuasar.core.errors import NotFound


async def rehearse(open_channel: Callable[[float], Awaitable[AgentClient]], deadline: float) -> None:
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
