"""Tap interfaces: opened by their name in the namespace of the calling thread.

A tap lives as long as somebody has one of its queues open, so that neither a dead worker nor a dead machine leaves one
behind. Only one that a VMM opens by its name (:func:`give_tap`) stays until it is deleted.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from contextlib import suppress

from kuasar.core.errors import AlreadyExists, wrap

MAX_QUEUES = 256
"""Of one tap, by the kernel."""

_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE, _IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x0100, 0x8000
_REQUEST = struct.Struct("16sH22x")
_EBUSY = 16


def tap_name(sandbox_id: str, interface: str) -> str:
    """The name of the tap that goes with an interface: the same for every worker of the sandbox, 14 characters."""
    return f"kuasar{zlib.crc32(f'{sandbox_id}/{interface}'.encode()):08x}"


def open_tap(name: str, queues: int) -> list[int]:
    """Make the tap ``name``: one descriptor per queue, non-blocking, frames with a virtio header. The caller closes.

    Raises :class:`AlreadyExists` when there is an interface of that name.
    """
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if queues > 1 else 0)
    opened: list[int] = []
    try:
        for number in range(queues):
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            opened.append(fd)
            fcntl.ioctl(fd, _TUNSETIFF, _REQUEST.pack(name.encode(), flags | (0 if number else _IFF_TUN_EXCL)))
    except OSError as exc:
        close_all(opened)
        if exc.errno == _EBUSY:
            raise AlreadyExists(f"an interface {name} exists already in the network namespace") from exc
        raise wrap(exc, f"cannot make the tap {name}") from exc
    return opened


def give_tap(fds: list[int], owner: int) -> None:
    """Have the tap behind its one descriptor stay without it, to be opened by a process of user ``owner``, and close
    that."""
    (fd,) = fds
    try:
        fcntl.ioctl(fd, _TUNSETOWNER, owner)
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    except OSError as exc:
        raise wrap(exc, f"cannot give a tap to user {owner}") from exc
    finally:
        close_all(fds)


def close_all(fds: list[int]) -> None:
    """Close descriptors and forget them."""
    while fds:
        with suppress(OSError):
            os.close(fds.pop())
