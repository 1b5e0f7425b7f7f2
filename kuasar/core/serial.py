"""How a connection begins on a serial port, which has none of its own: the words, and the host's half.

The host writes :data:`OPEN` and a nonce; the guest's carrier (``guest/pid1/serial.py``) makes a new connection to the
agent and answers :data:`READY` and the same nonce. Whatever comes before belongs to an earlier connection.
:data:`CLOSED` and the nonce say that the agent has closed it. None of the words can be the start of a frame: its
length would be beyond the limit.
"""

from __future__ import annotations

import base64
import os
import socket

from kuasar.core.aio import Loop
from kuasar.core.errors import Unavailable

OPEN = b"\xc1kuasar-open--1\xc1"
READY = b"\xc1kuasar-ready-1\xc1"
CLOSED = b"\xc1kuasar-closed1\xc1"
NONCE_BYTES = 16
_LOOK_BYTES = 64 * 1024


def make_nonce() -> bytes:
    """:data:`NONCE_BYTES` of 96 random bits. No control characters are among them: a port that is a console may get
    them while its terminal still takes such for itself."""
    return base64.urlsafe_b64encode(os.urandom(NONCE_BYTES * 3 // 4))


async def open_connection(loop: Loop, port: socket.socket, deadline: float) -> None:
    """Begin a connection on the host's end of the port; what ``port`` gives next is the agent's hello.

    Waits for a guest that is still booting. Raises DeadlineExceeded; :class:`Unavailable` when the machine is gone.
    """
    nonce = make_nonce()
    port.setblocking(False)
    try:
        port.send(OPEN + nonce)
        await loop.wait_for(_skip_to(loop, port, READY + nonce), deadline, "the guest's answer on its serial port")
    except OSError as exc:
        raise Unavailable(f"the serial port of the machine is gone: {exc.strerror}") from exc


async def _skip_to(loop: Loop, port: socket.socket, marker: bytes) -> None:
    """Read up to and including ``marker``, and not one byte more."""
    while True:
        await loop.wait_readable(port.fileno())
        seen = port.recv(_LOOK_BYTES, socket.MSG_PEEK)
        if not seen:
            raise Unavailable("the machine closed its serial port")
        at = seen.find(marker)
        if at >= 0:
            port.recv(at + len(marker))
            return
        waste = len(seen) - len(marker) + 1
        if waste > 0:
            port.recv(waste)
        else:
            await loop.sleep(0.001)  # the start of the marker stays readable: no need to spin while the rest comes
