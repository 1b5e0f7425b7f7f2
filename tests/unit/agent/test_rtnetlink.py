"""The codec of rtnetlink: attributes come back as they were, and nothing that arrives breaks it."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuasar.agent import rtnetlink
from kuasar.agent.rtnetlink import Rtnetlink
from kuasar.core import netlink

ATTRIBUTES = st.dictionaries(st.integers(0, 0x3FFF), st.binary(max_size=300), max_size=20)


@given(ATTRIBUTES)
def test_attributes_come_back(attributes: dict[int, bytes]) -> None:
    data = netlink.encode(attributes)
    assert len(data) % 4 == 0
    assert netlink.decode(data) == attributes


@given(ATTRIBUTES, st.integers(0, 400))
def test_a_cut_message_gives_what_is_whole(attributes: dict[int, bytes], length: int) -> None:
    found = netlink.decode(netlink.encode(attributes)[:length])
    assert all(attributes[kind] == value for kind, value in found.items())


@given(st.binary(max_size=200))
def test_garbage_ends(data: bytes) -> None:
    for _, _, _, body in netlink.messages(data):
        netlink.decode(body)


def test_the_kind_s_flags_are_no_part_of_it() -> None:
    assert netlink.decode(netlink.encode({26 | rtnetlink.NESTED: b"x"})) == {26: b"x"}


def test_messages_of_one_datagram() -> None:
    def message(kind: int, body: bytes) -> bytes:
        padded = body + bytes(-len(body) % 4)
        return struct.pack("=IHHII", 16 + len(body), kind, 2, 7, 0) + padded

    datagram = message(16, b"one") + message(20, b"fours") + b"\xff" * 20
    assert list(netlink.messages(datagram)) == [(16, 2, 7, b"one"), (20, 2, 7, b"fours")]


def test_reads_the_interfaces_that_are_there() -> None:
    with Rtnetlink() as sock:
        links = sock.dump(rtnetlink.GETLINK, rtnetlink.LINK)
        names = {attributes[3].rstrip(b"\0").decode() for _, attributes in links}
        assert "lo" in names
        # and again on the same socket
        assert len(sock.dump(rtnetlink.GETLINK, rtnetlink.LINK)) == len(links)


def test_a_refusal_has_the_kernel_s_errno() -> None:
    with Rtnetlink() as sock, pytest.raises(OSError) as caught:
        sock.change(rtnetlink.NEWLINK, 0, rtnetlink.LINK.pack(0, 0, 2**31 - 1, 0, 0), {})
    assert caught.value.errno in (errno.ENODEV, errno.EPERM)
    assert caught.value.strerror
