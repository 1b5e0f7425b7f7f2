"""rtnetlink with nothing but the standard library: what the agent needs to set up the network inside.

A message is a fixed part and attributes; :class:`Rtnetlink` sends requests and waits for the kernel's word. Calls do
not block noticeably: the kernel answers netlink requests at once.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

from kuasar.core.netlink import NetlinkSocket, decode, encode

NEWLINK, GETLINK = 16, 18
NEWADDR, GETADDR = 20, 22
NEWROUTE, GETROUTE = 24, 26
NEWNEIGH, GETNEIGH = 28, 30

REPLACE, EXCLUSIVE, CREATE, APPEND = 0x100, 0x200, 0x400, 0x800
NESTED = 0x8000
GROUP_LINK = 1

LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst length, src length, tos, table, protocol, scope, type, flags
NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type

Attributes = Mapping[int, bytes]


class Rtnetlink(NetlinkSocket):
    """Such a socket for messages that are a fixed part and attributes."""

    def change(self, kind: int, flags: int, fixed: bytes, attributes: Attributes) -> None:
        """Ask for a change and wait until it is made."""
        self.ask(kind, flags, fixed + encode(attributes))

    def dump(self, kind: int, fixed: struct.Struct) -> list[tuple[tuple[int, ...], dict[int, bytes]]]:
        """All things of a kind: (fields of the fixed part, attributes) of each. Raises as :meth:`listing` does."""
        bodies = self.listing(kind, bytes(fixed.size))
        return [(fixed.unpack_from(body), decode(body[fixed.size :])) for body in bodies if len(body) >= fixed.size]


def u32(value: int) -> bytes:
    """An attribute's 32 bits."""
    return struct.pack("=I", value)


def text(value: str) -> bytes:
    """An attribute's string."""
    return value.encode() + b"\0"


def open_link_events() -> socket.socket:
    """A non-blocking socket that becomes readable whenever an interface comes, changes or goes. The caller closes."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    try:
        sock.bind((0, GROUP_LINK))
    except BaseException:
        sock.close()
        raise
    return sock
