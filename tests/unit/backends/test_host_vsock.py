"""The host's vsock, as far as it can be tried without ``/dev/vhost-vsock``: the choice of a context id, connecting."""

from __future__ import annotations

import errno
import os
import socket
import time
from pathlib import Path

import pytest

from kuasar.backends import host_vsock
from kuasar.core.aio import Loop
from kuasar.core.errors import BackendFailed, DeadlineExceeded, ResourceExhausted, Unavailable


class Kernel:
    """Takes context ids as ``/dev/vhost-vsock`` does."""

    def __init__(self, *taken: int) -> None:
        self.taken = set(taken)

    def take(self, cid: int) -> None:
        if cid in self.taken:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        self.taken.add(cid)


def test_a_taken_id_is_passed_over() -> None:
    kernel = Kernel(0x10000 + 5, 0x10000 + 6)
    assert host_vsock.claim(kernel.take, 5) == 0x10000 + 7
    assert host_vsock.claim(kernel.take, 5) == 0x10000 + 8


def test_ids_begin_anew_at_the_end_of_the_range() -> None:
    last = 0x7FFF0000 - 1
    kernel = Kernel(0x10000 + last)
    assert host_vsock.claim(kernel.take, last) == 0x10000


def test_each_guest_is_given_an_id_of_its_own() -> None:
    kernel = Kernel()
    assert len({host_vsock.claim(kernel.take) for _ in range(100)}) == 100
    assert all(2 < cid < 0xFFFFFFFF for cid in kernel.taken)


def test_many_taken_ids_end_the_search() -> None:
    kernel = Kernel(*range(0x10000, 0x10000 + 64))
    with pytest.raises(ResourceExhausted, match="64 context ids in a row are taken"):
        host_vsock.claim(kernel.take, 0)


def test_another_refusal_is_told() -> None:
    def refuse(cid: int) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with pytest.raises(BackendFailed, match="refuses context id 65543: Operation not permitted"):
        host_vsock.claim(refuse, 7)


def test_what_is_no_vhost_device_refuses_the_request() -> None:
    with open("/dev/null", "rb") as file, pytest.raises(OSError) as refused:
        host_vsock.set_guest_cid(file.fileno(), 70000)
    assert refused.value.errno == errno.ENOTTY


def test_a_missing_device_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path}/vhost-vsock: No such file" in host_vsock.why_not(f"{tmp_path}/vhost-vsock")
    assert host_vsock.why_not("/dev/null") == ""


def connect(port: int, seconds: float = 10.0) -> socket.socket:
    """By TCP: the address is all that differs for the function."""
    loop = Loop()
    try:
        sock = socket.socket()
        return loop.run(host_vsock.connect(loop, sock, ("127.0.0.1", port), time.monotonic() + seconds, "the guest"))
    finally:
        loop.close()


def test_connecting_without_blocking() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, connect(listener.getsockname()[1]) as ours, listener.accept()[0] as theirs:
        theirs.sendall(b"hello")
        ours.setblocking(True)
        assert ours.recv(5) == b"hello"


def test_a_port_where_nobody_listens_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unavailable, match="the guest: Connection refused"):
        connect(port)


def test_an_unanswered_connection_ends_at_the_deadline() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        first = socket.create_connection(listener.getsockname())  # fills the backlog: the next one is not answered
        with first, pytest.raises(DeadlineExceeded, match="connecting to the guest"):
            connect(listener.getsockname()[1], 0.1)
