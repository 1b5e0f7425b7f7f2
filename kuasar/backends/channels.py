"""How every channel to an agent begins."""

from __future__ import annotations

import socket

from kuasar.agent.client import AgentClient
from kuasar.core.aio import Loop


async def greet(loop: Loop, sock: socket.socket, deadline: float | None) -> AgentClient:
    """A client on ``sock``, whose agent has said hello. The socket is the client's, and closed on failure. Raises
    Unavailable, DeadlineExceeded."""
    client = AgentClient(loop, sock)
    try:
        await client.hello(deadline)
    except BaseException:
        client.close()
        raise
    return client
