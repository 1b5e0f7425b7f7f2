"""What systemd is told: ready and alive only when the gateway has answered."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from kuasar.api.gen.ttrpc.ttrpc_pb2 import Request
from kuasar.core.ttrpc import FrameType, Header
from kuasar.supervisor.heart import Heart, make_heart
from kuasar.supervisor.probe import ANSWER_SECONDS, QUESTION, GatewayProbe


class Gateway:
    """Listens on both sockets, and answers when the test says so."""

    def __init__(self, directory: Path) -> None:
        self.listeners = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(2)]
        for listener, name in zip(self.listeners, ("task", "gateway"), strict=True):
            listener.bind(str(directory / name))
        self.probe = GatewayProbe(str(directory / "task"), str(directory / "gateway"))

    def listen(self) -> None:
        for listener in self.listeners:
            listener.listen()
            listener.settimeout(10)

    def answer(self, raw: bytes = struct.pack(">IIBB", 0, 1, 2, 0)) -> None:
        """Take the question that waits, and say ``raw``."""
        peer, _ = self.listeners[0].accept()
        with peer:
            assert peer.recv(4096) == QUESTION
            if raw:
                peer.sendall(raw)
        self.listeners[1].accept()[0].close()

    def close(self) -> None:
        self.probe.close()
        for listener in self.listeners:
            listener.close()


class Systemd:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(path)

    def told(self) -> list[str]:
        """Everything since the last call."""
        found: list[str] = []
        while True:
            try:
                found += self.socket.recv(4096).decode().split("\n")
            except BlockingIOError:
                return found


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    made = Gateway(tmp_path)
    yield made
    made.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    made = Systemd(str(tmp_path / "notify"))
    yield made
    made.socket.close()


def test_the_question_is_a_request_that_any_server_must_answer() -> None:
    header = Header.decode(QUESTION[: Header.SIZE])
    request = Request.FromString(QUESTION[Header.SIZE :])
    assert (header.length, header.type, header.stream % 2) == (len(QUESTION) - Header.SIZE, FrameType.REQUEST, 1)
    assert (request.service, request.method) == ("kuasar.Probe", "Ping")


def test_ready_comes_with_the_first_answer(gateway: Gateway, systemd: Systemd, tmp_path: Path) -> None:
    heart = Heart(str(tmp_path / "notify"), 60.0, gateway.probe)
    assert 0 < heart.beat(100.0) < 1
    assert systemd.told() == ["STATUS=the gateway does not listen: Connection refused"]
    heart.beat(100.1)
    assert systemd.told() == [], "nothing new"
    gateway.listen()
    heart.beat(101.0)
    heart.beat(101.1)
    assert systemd.told() == [], "that it listens proves nothing"
    gateway.answer()
    assert heart.beat(101.2) == pytest.approx(10.0)
    assert systemd.told() == ["WATCHDOG=1", "READY=1", "STATUS=serving"]
    heart.beat(111.3)
    gateway.answer()
    heart.beat(111.4)
    assert systemd.told() == ["WATCHDOG=1"]


def test_silence_is_told_and_asked_again(gateway: Gateway, systemd: Systemd, tmp_path: Path) -> None:
    gateway.listen()
    heart = Heart(str(tmp_path / "notify"), 0.0, gateway.probe)
    heart.beat(1.0)
    heart.beat(1.0 + ANSWER_SECONDS)
    assert systemd.told() == []
    heart.beat(1.1 + ANSWER_SECONDS)
    assert systemd.told() == ["STATUS=the gateway has not answered for 5 s"]
    heart.beat(3.0 + ANSWER_SECONDS)
    assert gateway.probe.waiting


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "the gateway hung up"),
        (struct.pack(">IIBB", 0, 1, 9, 0), "a frame of type 9 on stream 1"),
        (struct.pack(">IIBB", 0, 7, 2, 0), "a frame of type 2 on stream 7"),
    ],
)
def test_other_answers_are_none(gateway: Gateway, raw: bytes, why: str) -> None:
    gateway.listen()
    gateway.probe.ask(0.0)
    gateway.answer(raw)
    assert not gateway.probe.answered(1.0)
    assert why in gateway.probe.why
    assert not gateway.probe.waiting


def test_an_answer_in_pieces(gateway: Gateway) -> None:
    gateway.listen()
    gateway.probe.ask(0.0)
    peer, _ = gateway.listeners[0].accept()
    with peer:
        for byte in struct.pack(">IIBB", 3, 1, 2, 0)[:-1]:
            peer.sendall(bytes([byte]))
            assert not gateway.probe.answered(0.1)
        peer.sendall(b"\0abc")
        assert gateway.probe.answered(0.1)
        assert not gateway.probe.answered(0.1), "told once"


def test_the_end_is_told_but_a_reload_is_not(gateway: Gateway, systemd: Systemd, tmp_path: Path) -> None:
    heart = Heart(str(tmp_path / "notify"), 60.0, gateway.probe)
    heart.stop(ends=False)
    assert systemd.told() == []
    heart.stop(ends=True)
    assert systemd.told() == ["STOPPING=1"]


def test_what_systemd_asks_for(systemd: Systemd, tmp_path: Path) -> None:
    assert make_heart({}, "t", "g") is None
    heart = make_heart({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "8000000"}, "t", "g")
    assert heart is not None
    assert heart._pause == 2.0
    heart.beat(0.0)
    assert systemd.told() == ["STATUS=the gateway does not listen: No such file or directory"]


def test_a_systemd_that_is_away_harms_nobody(tmp_path: Path, gateway: Gateway) -> None:
    for address in (str(tmp_path / "none"), "@kuasar-test-none"):
        Heart(address, 1.0, gateway.probe).beat(0.0)


def test_names_of_the_abstract_namespace(tmp_path: Path, gateway: Gateway) -> None:
    name = f"kuasar-test-{tmp_path}"
    systemd = Systemd(f"\0{name}")
    try:
        Heart(f"@{name}", 1.0, gateway.probe).stop(ends=True)
        assert systemd.told() == ["STOPPING=1"]
    finally:
        systemd.socket.close()
