"""The host kernel's vsock (``/dev/vhost-vsock``): a context id for a guest, and connections to its ports.

A context id names one guest of the host. The kernel refuses one that is taken, so it is claimed on the very open device
that the VMM inherits, and is free again when the VMM is gone: there is no race and nothing to give back.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable

from kuasar.core.aio import Loop
from kuasar.core.errors import BackendFailed, ResourceExhausted, Unavailable

DEVICE = "/dev/vhost-vsock"
_SET_GUEST_CID = 0x4008AF60  # _IOW(VHOST_VIRTIO, 0x60, __u64)
_FIRST_CID, _CIDS = 0x10000, 0x7FFF0000
"""Small numbers are what people choose by hand for machines of theirs."""
_TRIES = 64


def why_not(device: str = DEVICE) -> str:
    """The reason why machines of this host cannot have a vsock; empty if they can."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        return f"{device}: {exc.strerror} (is the kernel module vhost_vsock loaded?)"
    return ""


def open_device() -> tuple[int, int]:
    """An open device and the context id that is claimed with it, until the last copy of the descriptor is closed. The
    caller closes its own. Raises :class:`BackendFailed`, ResourceExhausted."""
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise BackendFailed(f"cannot open {DEVICE}: {exc.strerror}") from exc
    try:
        return device, claim(lambda cid: set_guest_cid(device, cid))
    except BaseException:
        os.close(device)
        raise


def set_guest_cid(device: int, cid: int) -> None:
    """Give the guest of an open device its context id. Raises ``OSError``: ``EADDRINUSE`` if another one has it."""
    fcntl.ioctl(device, _SET_GUEST_CID, struct.pack("=Q", cid))


def claim(take: Callable[[int], None], start: int | None = None) -> int:
    """The first context id that ``take`` does not refuse as taken (``EADDRINUSE``), from ``start`` or from anywhere.
    Raises :class:`BackendFailed` for another refusal, ResourceExhausted."""
    at = int.from_bytes(os.urandom(4), "little") if start is None else start
    for number in range(_TRIES):
        cid = _FIRST_CID + (at + number) % _CIDS
        try:
            take(cid)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise BackendFailed(f"{DEVICE} refuses context id {cid}: {exc.strerror}") from exc
        else:
            return cid
    raise ResourceExhausted(f"{_TRIES} context ids in a row are taken on {DEVICE}")


async def open_port(loop: Loop, cid: int, port: int, deadline: float) -> socket.socket:
    """A connection to ``port`` of the guest, which the caller owns. Raises :class:`Unavailable` while nobody listens
    there, DeadlineExceeded."""
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    return await connect(loop, sock, (cid, port), deadline, f"vsock port {port} of context id {cid}")


async def connect(
    loop: Loop, sock: socket.socket, address: tuple[int | str, int], deadline: float, whom: str
) -> socket.socket:
    """Connect ``sock``, which is closed on failure, without blocking; gives it back. Raises :class:`Unavailable` when
    the peer refuses or is not there, DeadlineExceeded."""
    fd = sock.fileno()
    try:
        sock.setblocking(False)
        number = sock.connect_ex(address)
        if number == errno.EINPROGRESS:
            decided = loop.future()
            loop.add_writer(fd, lambda: decided.set_result(None))
            try:
                await loop.wait_for(decided, deadline, f"connecting to {whom}")
            finally:
                loop.remove_writer(fd)
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise Unavailable(f"{whom}: {os.strerror(number)}")
    except BaseException:
        sock.close()
        raise
    return sock
