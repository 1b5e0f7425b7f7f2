"""Listings under which the network changes: asked for again, and never taken for whole."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kuasar.core.errors import BackendFailed
from kuasar.core.netlink import HEADER, NetlinkSocket

LINK, DONE = 16, 3
INTERRUPTED = 0x10


@contextmanager
def kernel(interruptions: int) -> Iterator[NetlinkSocket]:
    """A socket whose other end answers listings as the kernel does; the first ones are interrupted. Each has its
    number as its only thing."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def answer() -> None:
        count = 0
        while request := theirs.recv(4096):
            sequence = HEADER.unpack_from(request)[3]
            flags = INTERRUPTED if count < interruptions else 0
            thing = HEADER.pack(HEADER.size + 4, LINK, flags, sequence, 0) + count.to_bytes(4, "little")
            theirs.send(thing + HEADER.pack(HEADER.size + 4, DONE, flags, sequence, 0) + bytes(4))
            count += 1

    thread = threading.Thread(target=answer)
    netlink = NetlinkSocket()
    netlink._socket.close()
    netlink._socket = ours
    thread.start()
    try:
        with netlink:
            yield netlink
    finally:
        thread.join()
        theirs.close()


@pytest.mark.parametrize("interruptions", [0, 1, 4])
def test_a_listing_under_which_things_changed_is_asked_for_again(interruptions: int) -> None:
    with kernel(interruptions) as netlink:
        assert netlink.listing(LINK, bytes(16)) == [interruptions.to_bytes(4, "little")]


def test_a_listing_that_is_always_interrupted_is_an_error() -> None:
    with kernel(5) as netlink, pytest.raises(BackendFailed, match="5 listings were interrupted"):
        netlink.listing(LINK, bytes(16))
