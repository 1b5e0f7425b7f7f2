"""Hybrid vsock: a port of the guest behind a unix socket of the VMM, which asks for it by a line (``CONNECT 1024``)."""

from __future__ import annotations

import socket

from kuasar.backends.sockets import connect
from kuasar.core.aio import Loop
from kuasar.core.errors import BackendFailed, Unavailable

_LONGEST_ANSWER = 64


async def open_port(loop: Loop, directory: str, name: str, port: int, deadline: float) -> socket.socket:
    """A connection to ``port`` of the guest, which the caller owns. Raises :class:`Unavailable` while nobody listens
    there (the VMM just hangs up), BackendFailed for an answer that is none, DeadlineExceeded."""
    try:
        sock = connect(directory, name, "the machine's vsock")
    except BackendFailed as exc:
        raise Unavailable(exc.message) from exc
    try:
        sock.setblocking(False)
        await loop.wait_for(_shake_hands(loop, sock, port), deadline, f"connecting to vsock port {port}")
    except OSError as exc:
        sock.close()
        raise Unavailable(f"vsock port {port}: {exc.strerror}") from exc
    except BaseException:
        sock.close()
        raise
    return sock


async def _shake_hands(loop: Loop, sock: socket.socket, port: int) -> None:
    sock.sendall(b"CONNECT %d\n" % port)  # a new connection has room for a line
    answer = b""
    while not answer.endswith(b"\n"):
        await loop.wait_readable(sock.fileno())
        byte = sock.recv(1)  # what follows the line is the agent's
        if not byte:
            raise Unavailable(f"nobody listens on vsock port {port} of the machine")
        answer += byte
        if len(answer) > _LONGEST_ANSWER:
            break
    if not answer.startswith(b"OK ") or not answer.endswith(b"\n"):
        raise BackendFailed(f"vsock port {port}: the VMM answered {answer!r} instead of OK")
