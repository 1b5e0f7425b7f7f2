"""From the socket into the log: a successor goes on exactly, at whatever step its predecessor died."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kuasar.core.ttrpc import FrameType, encode_frame
from kuasar.gateway.connection_log import ConnectionLog
from kuasar.gateway.exchange import DamagedLog
from kuasar.gateway.outlet import Outlet, Piece, new_spool
from kuasar.gateway.ttrpc_connection import settle_last_piece

REQUEST = encode_frame(1, FrameType.REQUEST, b"a request")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The peer's end and ours."""
    peer, ours = socket.socketpair()
    ours.setblocking(False)
    peer.setblocking(False)
    with peer, ours:
        yield peer, ours


class Killed(BaseException):
    """What stands for a SIGKILL: nothing catches it."""


class DyingLog(ConnectionLog):
    """Dies instead of its n-th write."""

    writes_left = 100

    def _write(self, data: bytes, offset: int) -> bool:
        if self.writes_left == 0:
            raise Killed
        self.writes_left -= 1
        return super()._write(data, offset)


class DyingSocket(socket.socket):
    """Dies instead of consuming."""

    def recv(self, size: int, flags: int = 0) -> bytes:
        if not flags & socket.MSG_PEEK:
            raise Killed
        return super().recv(size, flags)


def test_whatever_the_last_step_was_nothing_is_lost_or_doubled(
    tmp_path: Path, pair: tuple[socket.socket, socket.socket]
) -> None:
    peer, ours = pair
    path = str(tmp_path / "log")
    ConnectionLog.create(path, ours).close()
    sent = 0
    for death in ("none", "recorded", "consumed", "looked", "none"):
        for _ in range(2):  # the same bytes again and again but for their stream: they cannot be told apart by looking
            peer.send(encode_frame(2 * sent + 1, FrameType.REQUEST, b"same"))
            sent += 1
        dying = DyingLog.open(path, ours)
        assert isinstance(dying, DyingLog)
        try:
            if death == "looked":  # before the record
                dying.writes_left = 0
            if death == "consumed":  # before it is written down that it is
                dying.writes_left = 1
            if death == "recorded":
                with DyingSocket(fileno=os.dup(ours.fileno())) as reader:
                    dying.take(reader)
            dying.take(ours)
        except Killed:
            pass
        dying.close()
        successor = ConnectionLog.open(path, ours)
        if death == "looked":
            assert successor.take(ours)
        assert [request.stream for request in successor.exchange.requests.values()] == [2 * n + 1 for n in range(sent)]
        successor.close()
        with pytest.raises(BlockingIOError):
            ours.recv(1, socket.MSG_PEEK)


def test_a_request_in_parts_is_whole_for_the_successor(
    tmp_path: Path, pair: tuple[socket.socket, socket.socket]
) -> None:
    peer, ours = pair
    first = ConnectionLog.create(str(tmp_path / "log"), ours)
    peer.send(REQUEST[:13])
    assert first.take(ours) == []
    first.close()
    second = ConnectionLog.open(str(tmp_path / "log"), ours)
    peer.send(REQUEST[13:])
    (request,) = second.take(ours) or []
    assert request.payload == b"a request"
    peer.close()
    assert second.take(ours) is None
    second.remove()
    assert os.listdir(tmp_path) == []


def test_a_log_stays_short(tmp_path: Path, pair: tuple[socket.socket, socket.socket]) -> None:
    peer, ours = pair
    path = tmp_path / "log"
    log = ConnectionLog.create(str(path), ours)
    peer.send(REQUEST)  # a Wait that stays
    log.take(ours)
    log.bind("k8s.io/c", "s")
    for n in range(1, 4000):
        peer.send(encode_frame(2 * n + 1, FrameType.REQUEST, b"x" * 100))
        log.take(ours)
        log.answered(2 * n + 1)
    log.close()
    assert path.stat().st_size < 80_000
    successor = ConnectionLog.open(str(path), ours)
    assert [request.payload for request in successor.exchange.requests.values()] == [b"a request"]
    assert successor.exchange.bound == {"k8s.io/c": "s"}
    assert successor.exchange.last_stream == 7999
    successor.close()


def test_without_room_the_connection_goes_on_and_its_successor_is_told(
    tmp_path: Path, pair: tuple[socket.socket, socket.socket]
) -> None:
    peer, ours = pair
    path = str(tmp_path / "log")
    log = ConnectionLog.create(path, ours)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12, limits[1]))
    try:
        peer.send(REQUEST)
        assert [request.payload for request in log.take(ours) or []] == [b"a request"]
        log.answered(1)
        peer.send(encode_frame(3, FrameType.REQUEST, b"more"))
        assert [request.payload for request in log.take(ours) or []] == [b"more"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.close()
    with pytest.raises(DamagedLog, match="not everything could be written down"):
        ConnectionLog.open(path, ours)


def test_what_was_not_written_down_is_no_log(tmp_path: Path, pair: tuple[socket.socket, socket.socket]) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\xff" * 8)
    with pytest.raises(DamagedLog, match="not everything could be written down"):
        ConnectionLog.open(str(path), pair[1])
    path.write_bytes(b"")  # it died while it created the log
    ConnectionLog.open(str(path), pair[1]).close()
    assert path.read_bytes() == bytes(8)


def test_what_was_sent_is_known_to_the_byte(pair: tuple[socket.socket, socket.socket]) -> None:
    peer, ours = pair
    spool = new_spool()
    kept = os.dup(spool)  # the keeper's
    outlet = Outlet(spool, lambda fd: None)
    assert outlet.last_piece() is None
    assert outlet.send(7, 1, ours, b"small") == 5
    big = os.urandom(1 << 20)
    sent = outlet.send(7, 3, ours, big)
    assert 0 < sent < len(big)
    outlet.close()
    successor = Outlet(kept, lambda fd: None)
    assert successor.last_piece() == Piece(7, 3, 0, big, sent)
    got = b""
    while sent < len(big):
        got += peer.recv(1 << 20)
        sent += successor.send(7, 3, ours, big[sent:], sent)
    while len(got) < 5 + len(big):
        got += peer.recv(1 << 20)
    assert got == b"small" + big
    last = successor.last_piece()
    assert last is not None
    assert last.before + last.sent == len(big)
    successor.close()


@pytest.mark.parametrize("written_down", ["request", "unsent"])
def test_the_last_piece_counts_whatever_was_written_down_of_it(
    tmp_path: Path, pair: tuple[socket.socket, socket.socket], written_down: str
) -> None:
    """An answer that had to wait behind another is in the log with nothing sent when its first piece goes out."""
    peer, ours = pair
    log = ConnectionLog.create(str(tmp_path / "1"), ours)
    peer.send(REQUEST)
    log.take(ours)
    frame = encode_frame(1, FrameType.RESPONSE, os.urandom(1 << 20))
    if written_down == "unsent":
        log.keep(1, frame, 0)
    outlet = Outlet(new_spool(), lambda fd: None)
    kept = os.dup(outlet.fileno())
    sent = outlet.send(1, 1, ours, frame)
    assert 0 < sent < len(frame)
    outlet.close()  # and here it dies
    log.close()
    successor, log = Outlet(kept, lambda fd: None), ConnectionLog.open(str(tmp_path / "1"), ours)
    settle_last_piece([(1, log)], successor)
    assert log.exchange.requests == {}
    assert log.exchange.unsent[1].sent == sent
    assert log.exchange.unsent[1].frame == frame
    log.remove()
    successor.close()


def test_a_long_spool_is_replaced_and_what_lies_unread_stays_as_it_was(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """sendfile hands over references to pages, so that a place that is written again would change what was sent."""
    peer, ours = pair
    handed_over: list[int] = []
    outlet = Outlet(new_spool(), lambda fd: handed_over.append(os.dup(fd)))
    for n in range(40):
        data = bytes([n]) * 60_000
        assert outlet.send(1, 2 * n + 1, ours, data) == len(data)
        if n % 2:
            got = b""
            while len(got) < 120_000:
                got += peer.recv(1 << 20)
            assert got == bytes([n - 1]) * 60_000 + data
    assert len(handed_over) == 2
    for fd in handed_over:
        os.close(fd)
    outlet.close()


def test_sending_to_nobody_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    peer, ours = pair
    outlet = Outlet(new_spool(), lambda fd: None)
    peer.close()
    with pytest.raises(OSError, match="Broken pipe"):
        outlet.send(1, 1, ours, b"x")
    outlet.close()
