"""Exec and attach streams against a peer that speaks SPDY on a real socket. Stock containerd is met in tests/e2e."""

from __future__ import annotations

import json
import os
import struct

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kuasar.cli.cri_stream import CriError, ExecResult, ExecStream
from tests.unit.cli.spdy_peer import Peer, serving


def connect(url: str, *, tty: bool = False, stdin: bool = False) -> ExecStream:
    return ExecStream(url, tty=tty, stdin=stdin, stdout=True, stderr=not tty, timeout=5)


def ready(peer: Peer, streams: int = 3) -> None:
    peer.upgrade()
    peer.accept_streams(streams)


def exit_status(code: int) -> str:
    cause = {"reason": "ExitCode", "message": str(code)}
    return json.dumps({"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": [cause]}})


def test_output_error_output_and_exit_code() -> None:
    def script(peer: Peer) -> None:
        ready(peer)
        peer.send_data("stdout", b"on")
        peer.send_data("stderr", b"bad")
        peer.send_data("stdout", b"e")
        peer.finish(exit_status(5))

    with serving(script) as url, connect(url) as stream:
        assert stream.wait(timeout=5) == ExecResult(b"one", b"bad", 5)
        assert (stream.stdout, stream.stderr) == (b"one", b"bad")


def test_the_request_names_path_query_and_protocol() -> None:
    requests = []

    def script(peer: Peer) -> None:
        ready(peer)
        requests.append(peer.request.decode())
        peer.finish()

    with serving(script) as url, connect(url) as stream:
        assert stream.wait(timeout=5).exit_code == 0
    lines = requests[0].split("\r\n")
    assert lines[0] == "POST /exec/token?x=1 HTTP/1.1"
    assert {"Upgrade: SPDY/3.1", "Connection: Upgrade", "X-Stream-Protocol-Version: v4.channel.k8s.io"} <= set(lines)


def test_stdin_ends_while_output_goes_on() -> None:
    def script(peer: Peer) -> None:
        ready(peer, 4)
        read = b""
        ended = False
        while not ended:
            name, data, ended = peer.read_data()
            assert name == "stdin"
            read += data
        peer.send_data("stdout", b"after the end: " + read)
        peer.finish()

    with serving(script) as url, connect(url, stdin=True) as stream:
        stream.send_stdin(b"a")
        stream.send_stdin(b"b")
        stream.close_stdin()
        assert stream.wait(timeout=5) == ExecResult(b"after the end: ab", b"", 0)


def test_a_peer_that_reads_on_only_when_its_output_is_taken() -> None:
    sent = os.urandom(8 << 20)

    def script(peer: Peer) -> None:
        ready(peer, 4)
        ended = False
        while not ended:
            _, data, ended = peer.read_data()
            peer.send_data("stdout", data)
        peer.finish()

    with serving(script) as url, connect(url, stdin=True) as stream:
        stream.send_stdin(sent, timeout=10)
        stream.close_stdin()
        assert stream.wait(timeout=10).stdout == sent


def test_a_terminal_has_a_size_and_one_output() -> None:
    def script(peer: Peer) -> None:
        ready(peer, 4)
        assert sorted(peer.streams) == ["error", "resize", "stdin", "stdout"]
        name, data, _ = peer.read_data()
        assert (name, json.loads(data)) == ("resize", {"Width": 120, "Height": 40})
        peer.finish()

    with serving(script) as url, connect(url, tty=True, stdin=True) as stream:
        stream.resize(120, 40)
        assert stream.wait(timeout=5).exit_code == 0


def test_reading_step_by_step() -> None:
    def script(peer: Peer) -> None:
        ready(peer, 4)
        peer.send_data("stdout", b"first $ sec")
        assert peer.read_data()[1] == b"go\n"
        peer.send_data("stdout", b"ond $ rest")
        peer.finish()

    with serving(script) as url, connect(url, stdin=True) as stream:
        assert stream.read_until(b"$ ", timeout=5) == b"first $ "
        stream.send_stdin(b"go\n")
        assert stream.read_until(b"$ ", timeout=5) == b"second $ "
        assert stream.wait(timeout=5).stdout == b"first $ second $ rest"
        with pytest.raises(CriError, match="the stream has ended") as caught:
            stream.read_until(b"$ ", timeout=5)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def test_frames_that_arrive_byte_by_byte_and_a_ping_among_them() -> None:
    def script(peer: Peer) -> None:
        ready(peer)
        ping = struct.pack(">HHII", 0x8003, 6, 4, 2)
        frame = struct.pack(">II", peer.streams["stdout"], 5) + b"bytes"
        for byte in ping + frame:
            peer.connection.sendall(bytes([byte]))
        assert peer.read_control() == (6, b"\x00\x00\x00\x02")
        peer.finish()

    with serving(script) as url, connect(url) as stream:
        assert stream.wait(timeout=5).stdout == b"bytes"


def test_a_deadline_says_what_was_waited_for() -> None:
    def script(peer: Peer) -> None:
        ready(peer)
        with pytest.raises(EOFError):
            peer.read_exactly(1)

    with serving(script) as url, connect(url) as stream:
        with pytest.raises(CriError, match=r"waiting for b'prompt': not done in 0\.05 s") as caught:
            stream.read_until(b"prompt", timeout=0.05)
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_what_was_not_opened_cannot_be_used() -> None:
    def script(peer: Peer) -> None:
        ready(peer)
        peer.finish()

    with serving(script) as url, connect(url) as stream:
        with pytest.raises(CriError, match="opened without stdin") as caught:
            stream.send_stdin(b"x")
        assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
        with pytest.raises(CriError, match="opened without stdin"):
            stream.close_stdin()
        with pytest.raises(CriError, match="opened without resize"):
            stream.resize(1, 1)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        ('{"status":"Failure","message":"no such program"}', grpc.StatusCode.INTERNAL, "no such program"),
        ('{"status":"Failure","details":{"causes":[1]}}', grpc.StatusCode.INTERNAL, "Failure"),
        ('{"status":"Failure","details":[]}', grpc.StatusCode.INTERNAL, "Failure"),
        ("[]", grpc.StatusCode.UNAVAILABLE, "without an exit status"),
        ("not json", grpc.StatusCode.UNAVAILABLE, "without an exit status: not json"),
        ("", grpc.StatusCode.UNAVAILABLE, "without an exit status"),
    ],
)
def test_ends_without_an_exit_code(status: str, code: grpc.StatusCode, message: str) -> None:
    def script(peer: Peer) -> None:
        ready(peer)
        peer.finish(status)

    with serving(script) as url, connect(url) as stream:
        with pytest.raises(CriError, match=message) as caught:
            stream.wait(timeout=5)
        assert caught.value.code is code


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        (struct.pack(">II", 99, 0), "stream 99, which was never opened"),
        (struct.pack(">HHI", 0x8002, 2, 0), "another version"),
        (struct.pack(">HHI", 0x8003, 2, 0), "only 0 bytes"),
    ],
)
def test_broken_frames(wire: bytes, message: str) -> None:
    def script(peer: Peer) -> None:
        ready(peer)
        peer.connection.sendall(wire)

    with serving(script) as url:
        # It may come so early that connecting already sees it.
        with pytest.raises(CriError, match=message) as caught, connect(url) as stream:
            stream.wait(timeout=5)
        assert caught.value.code is grpc.StatusCode.INTERNAL


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_end_in_a_cri_error(wire: bytes) -> None:
    def script(peer: Peer) -> None:
        ready(peer)
        peer.connection.sendall(wire)

    with serving(script) as url, pytest.raises(CriError), connect(url) as stream:
        stream.wait(timeout=5)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\nunable to upgrade", "refused to speak SPDY/3.1.*403 Forbidden unable"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "refused to speak"),
        (b"nonsense", "no HTTP answer: b'nonsense'"),
    ],
)
def test_a_server_that_does_not_upgrade(answer: bytes, message: str) -> None:
    with serving(lambda peer: peer.upgrade(answer)) as url:
        with pytest.raises(CriError, match=message) as caught:
            connect(url)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("url", ["https://127.0.0.1:1/x", "unix:///run/x", "http:///x", ""])
def test_urls_that_are_not_spoken(url: str) -> None:
    with pytest.raises(CriError, match="cannot stream from"):
        connect(url)


def test_nobody_there() -> None:
    with pytest.raises(CriError, match="cannot connect to http://127") as caught:
        connect("http://127.0.0.1:1/x")
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
