"""Ways to the agent of a machine: which there are, and how each of them begins."""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable

from kuasar.agent.client import AgentClient
from kuasar.core.aio import Loop
from kuasar.core.errors import DeadlineExceeded, Unavailable

AUTO, VSOCK, VHOST_USER_VSOCK, VIRTIO_SERIAL = "auto", "vsock", "vhost-user-vsock", "virtio-serial"
"""Names in the configuration: the best that works here; the host kernel's vsock; that of a daemon; a serial port."""
AGENT_PORT = 1024
"""Where the guest's agent listens if its machine has a vsock (``guest/pid1/channel.py``)."""
_PAUSE_SECONDS = 0.005
_PATIENCE_SECONDS = 3.0


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


async def until_listening(
    loop: Loop, connect: Callable[[float], Awaitable[socket.socket]], deadline: float
) -> socket.socket:
    """A connection by ``connect``, which is given a deadline, tried again while nobody listens (Unavailable): the guest
    may still be booting. An unanswered request is made anew after some seconds, as one is lost that reaches a guest
    whose driver is just being reset. Raises what ``connect`` does at last."""
    while True:
        try:
            return await connect(min(deadline, time.monotonic() + _PATIENCE_SECONDS))
        except (Unavailable, DeadlineExceeded):
            if time.monotonic() + _PAUSE_SECONDS > deadline:
                raise
        await loop.sleep(_PAUSE_SECONDS)
