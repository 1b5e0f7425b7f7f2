"""``socket`` of the guest: the interpreter's own sockets as context managers, for a tenth of the memory.

The library's makes an enumeration of some hundred constants, and has what reads lines, resolves names and sends files.
Constants are plain numbers here; ``AddressFamily`` is for annotations.
"""

from __future__ import annotations

import _socket
import os
import struct
from _socket import *  # noqa: F403
from typing import Any

AddressFamily = int
_INT = struct.Struct("i").size


class socket(_socket.socket):  # type: ignore[no-redef]  # noqa: N801 - the library's name
    """A socket that ``with`` closes."""

    __slots__ = ()

    def __enter__(self) -> socket:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def accept(self) -> tuple[socket, Any]:
        """The next connection, blocking, and its peer's address."""
        descriptor, address = self._accept()  # type: ignore[attr-defined]
        return socket(fileno=descriptor), address

    def set_inheritable(self, inheritable: bool) -> None:
        """Whether a program that is executed keeps it."""
        os.set_inheritable(self.fileno(), inheritable)


def recv_fds(sock: socket, bufsize: int, maxfds: int, flags: int = 0) -> tuple[bytes, list[int], int, Any]:
    """Data and up to ``maxfds`` descriptors, which the caller closes."""
    data, messages, flags, address = sock.recvmsg(bufsize, _socket.CMSG_LEN(maxfds * _INT), flags)
    found: list[int] = []
    for level, kind, content in messages:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            found += struct.unpack(f"{len(content) // _INT}i", content[: len(content) // _INT * _INT])
    return data, found, flags, address
