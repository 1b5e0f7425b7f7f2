"""The keeper as a process: what is put comes back, whoever dies in between; and what it refuses."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from kuasar.core.errors import InvalidArgument, NotFound, PermissionDenied, ResourceExhausted, Unavailable
from kuasar.supervisor import keeper, keeper_wire
from kuasar.supervisor.keeper_client import Keeper
from tests.deadline import eventually
from tests.integration.supervisor.stack import PATIENCE, ROOT, Stack

HOLDER = """
import os, sys
from kuasar.supervisor.keeper_client import Keeper
keeper = Keeper(sys.argv[1])
file = os.memfd_create("file")
os.write(file, b"abcunread")
os.lseek(file, 3, os.SEEK_SET)
keeper.put("holder/file", [file], b"meta")
print("put", flush=True)
sys.stdin.read()
"""


class Process:
    """A keeper that listens."""

    def __init__(self, config: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kuasar.supervisor.keeper", "--config", str(config)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert self.process.stderr is not None
        self.said = []
        for line in self.process.stderr:
            self.said.append(line.decode())
            if b"keeper is listening" in line:
                break
        else:
            raise AssertionError(f"the keeper ended: {''.join(self.said)}")

    def end(self) -> int:
        self.process.kill()
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(PATIENCE)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@pytest.fixture
def config(directory: str, no_leaks: None) -> Path:
    path = Path(directory, "kuasar.toml")
    path.write_text(f'state_dir = "{directory}/s"\n[supervisor]\nkeeper = "{directory}/s/keep.sock"\n')
    return path


@pytest.fixture
def process(config: Path) -> Iterator[Process]:
    running = Process(config)
    yield running
    running.end()


@pytest.fixture
def socket_path(config: Path) -> str:
    return f"{config.parent}/s/keep.sock"


@pytest.fixture
def client(process: Process, socket_path: str) -> Iterator[Keeper]:
    made = Keeper(socket_path)
    yield made
    made.close()


def put_pipe(client: Keeper, name: str, content: bytes = b"") -> None:
    reading, writing = os.pipe()
    os.write(writing, content)
    try:
        client.put(name, [reading, writing])
    finally:
        os.close(reading)
        os.close(writing)


def contents(client: Keeper, name: str) -> bytes:
    """What lies unread in a kept pipe; it is taken out."""
    kept = client.get(name)
    assert kept is not None
    fds, _ = kept
    data = os.read(fds[0], 1 << 16)
    for fd in fds:
        os.close(fd)
    return data


def test_what_is_put_comes_back_until_it_is_dropped(client: Keeper) -> None:
    put_pipe(client, "a/1", b"one")
    put_pipe(client, "a/2", b"two")
    put_pipe(client, "b")
    assert client.list("") == ["a/1", "a/2", "b"]
    assert client.list("a/") == ["a/1", "a/2"]
    assert contents(client, "a/1") == b"one"
    put_pipe(client, "a/1", b"other")
    assert contents(client, "a/1") == b"other"
    client.drop("a/1")
    client.drop("a/1")
    assert client.get("a/1") is None
    client.drop_all("a/")
    assert client.list("") == ["b"]


def test_what_is_dropped_is_closed(client: Keeper) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        ours.settimeout(PATIENCE)
        with theirs:
            client.put("end", [theirs.fileno()])
        kept = client.get("end")  # still open
        assert kept is not None
        os.close(kept[0][0])
        client.drop("end")
        assert ours.recv(1) == b""


def test_position_and_content_outlive_the_holder(client: Keeper, socket_path: str) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, socket_path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == b"put\n"
    holder.kill()
    holder.wait()
    holder.stdout.close()
    holder.stdin.close()
    kept = client.get("holder/file")
    assert kept is not None
    (file,), meta = kept
    assert (meta, os.lseek(file, 0, os.SEEK_CUR), os.read(file, 100)) == (b"meta", 3, b"unread")
    os.close(file)


def test_a_connection_is_accepted_and_kept(client: Keeper, directory: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as peer:
        listener.bind(f"{directory}/l")
        listener.listen()
        client.put("gateway/listener", [listener.fileno()])
        assert client.accept("gateway/listener", "gateway/c/1") is None
        peer.connect(f"{directory}/l")
        peer.settimeout(PATIENCE)
        accepted = client.accept("gateway/listener", "gateway/c/1")
        assert accepted is not None
        assert not os.get_blocking(accepted)
        os.close(accepted)  # whoever has asked may die
        again = client.get("gateway/c/1")
        assert again is not None
        with socket.socket(fileno=again[0][0]) as connection:
            connection.sendall(b"x")
            assert peer.recv(1) == b"x"
            client.drop("gateway/c/1")
        assert peer.recv(1) == b""


def test_accepting_on_what_is_not_there_is_refused(client: Keeper) -> None:
    with pytest.raises(NotFound, match="no socket is kept as gateway/listener"):
        client.accept("gateway/listener", "gateway/c/1")


def test_the_keeper_dies_and_its_holder_hands_everything_over_again(
    process: Process, client: Keeper, config: Path
) -> None:
    put_pipe(client, "a")
    fileno = client.fileno()
    assert fileno is not None
    process.end()
    assert select.select([fileno], [], [], PATIENCE)[0] == [fileno]
    with pytest.raises(Unavailable, match="is away"):
        client.get("a")
    assert client.fileno() is None
    successor = Process(config)
    try:
        assert client.get("a") is None
        put_pipe(client, "a", b"again")
        assert contents(client, "a") == b"again"
    finally:
        successor.end()


def test_a_second_keeper_takes_everything_over(process: Process, client: Keeper, config: Path) -> None:
    for number in range(300):
        put_pipe(client, f"sandbox/{number:03}", str(number).encode())
    fileno = client.fileno()
    assert fileno is not None
    second = Process(config)
    try:
        assert process.wait() == 0
        assert select.select([fileno], [], [], PATIENCE)[0] == [fileno]
        client.lost()
        names = client.list("sandbox/")
        assert names == [f"sandbox/{number:03}" for number in range(300)]
        assert [contents(client, name) for name in names] == [str(number).encode() for number in range(300)]
    finally:
        second.end()


def test_a_successor_that_goes_away_again_costs_nothing(client: Keeper, socket_path: str) -> None:
    put_pipe(client, "a", b"still here")
    successor = Keeper(socket_path)
    successor.resign()
    with pytest.raises(Unavailable):
        client.get("a")
    successor.close()
    while True:  # it listens again once it has noticed
        try:
            assert contents(client, "a") == b"still here"
            break
        except Unavailable:
            continue


def test_only_a_successor_ends_it(client: Keeper) -> None:
    with pytest.raises(InvalidArgument, match="only a successor"):
        client.done()
    assert client.list("") == []


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"", None),
        (b"\xc1", "not msgpack"),
        (msgpack.packb([1]), "a map with string keys"),
        (msgpack.packb({"op": "eat"}), "op: 'eat' is none of"),
        (msgpack.packb({"op": "get", "name": "../etc"}), "is no name"),
        (msgpack.packb({"op": "get", "name": "a", "also": 1}), "unknown keys also"),
        (bytes(keeper_wire.MAX_MESSAGE_BYTES + 1), "more than 65536 bytes"),
    ],
)
def test_nonsense_is_answered_and_harms_nobody(
    client: Keeper, socket_path: str, message: bytes, words: str | None
) -> None:
    put_pipe(client, "a", b"here")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.settimeout(PATIENCE)
        peer.connect(socket_path)
        peer.send(message)
        if words is not None:
            error = keeper_wire.decode_reply(peer.recv(1 << 16))
            assert isinstance(error, InvalidArgument)
            assert words in error.message
    assert contents(client, "a") == b"here"


def test_descriptors_with_a_request_that_takes_none_are_closed(client: Keeper, socket_path: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        ours.settimeout(PATIENCE)
        peer.settimeout(PATIENCE)
        peer.connect(socket_path)
        with theirs:
            socket.send_fds(peer, [msgpack.packb({"op": "get", "name": "a"})], [theirs.fileno()])
        error = keeper_wire.decode_reply(peer.recv(1 << 16))
        assert isinstance(error, InvalidArgument)
        assert "takes no descriptors" in error.message
        assert ours.recv(1) == b""


def test_more_descriptors_than_allowed_are_refused(client: Keeper, socket_path: str) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        with pytest.raises(InvalidArgument, match="33 descriptors"):
            client.put("a", [null] * 33)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
            peer.settimeout(PATIENCE)
            peer.connect(socket_path)
            socket.send_fds(peer, [msgpack.packb({"op": "put", "name": "a", "meta": b""})], [null] * 33)
            error = keeper_wire.decode_reply(peer.recv(1 << 16))
        assert isinstance(error, ResourceExhausted)
        assert client.list("") == []
        client.put("a", [null] * 32)
        kept = client.get("a")
        assert kept is not None
        assert len(kept[0]) == 32
        for fd in kept[0]:
            os.close(fd)
    finally:
        os.close(null)


def test_descriptors_are_refused_before_they_run_out(directory: str, config: Path, socket_path: str) -> None:
    command = ["prlimit", "--nofile=200:200", sys.executable, "-m", "kuasar.supervisor.keeper", "--config", str(config)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert any(b"keeper is listening" in line for line in process.stderr)
        client = Keeper(socket_path)
        put = 0
        with pytest.raises(ResourceExhausted, match="may hold 104"):
            while True:
                put_pipe(client, f"pipe/{put}", str(put).encode())
                put += 1
        assert put == 52
        put_pipe(client, "pipe/0", b"replaced")  # needs no more than there is
        assert contents(client, "pipe/0") == b"replaced"
        assert contents(client, "pipe/51") == b"51"
        client.drop("pipe/1")
        put_pipe(client, "another", b"fits")
        assert contents(client, "another") == b"fits"
        client.close()
        process.kill()


def test_other_users_are_turned_away(client: Keeper, socket_path: str) -> None:
    os.chmod(os.path.dirname(socket_path), 0o711)
    os.chmod(socket_path, 0o666)
    stranger = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534);"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1]); print(s.recv(4096))"
    )
    os.chmod(os.path.dirname(os.path.dirname(socket_path)), 0o711)
    done = subprocess.run(
        [sys.executable, "-c", stranger, socket_path], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert "only user 0 may ask, not 65534" in done.stdout
    assert client.list("") == []


def test_an_open_directory_is_refused(config: Path, socket_path: str) -> None:
    directory = os.path.dirname(socket_path)
    os.makedirs(directory)
    os.chmod(directory, 0o755)
    with pytest.raises(PermissionDenied, match="has mode 0755"):
        keeper.listen(socket_path)


def test_supervisord_is_killed_and_nothing_is_closed(directory: str, no_leaks: None) -> None:
    """All holders die with supervisord; the next one's keeper takes everything over."""
    stack = Stack(directory, keeper=True)
    client = Keeper(stack.config.supervisor.keeper)
    try:
        eventually(lambda: is_there(client), "the keeper listens", timeout=PATIENCE)
        put_pipe(client, "a", b"kept")
        client.close()  # as if we had been killed, too
        orphan = os.pidfd_open(int(stack.ctl("pid", "keeper")))
        os.kill(stack.daemon.process.pid, signal.SIGKILL)
        stack.daemon.wait_end()
        stack.restart()
        assert select.select([orphan], [], [], PATIENCE)[0] == [orphan]
        os.close(orphan)
        eventually(lambda: is_there(client), "its successor listens", timeout=PATIENCE)
        assert contents(client, "a") == b"kept"
    finally:
        client.close()
        stack.close()


def test_a_program_that_dies_twice_is_back_at_once(directory: str, no_leaks: None) -> None:
    """Stock supervisord waits a second longer each time."""
    stack = Stack(directory, keeper=True)
    client = Keeper(stack.config.supervisor.keeper)
    try:
        for _ in range(4):
            eventually(lambda: is_there(client), "the keeper listens", timeout=PATIENCE)
            client.close()
            os.kill(int(stack.ctl("pid", "keeper")), signal.SIGKILL)
            stack.daemon.wait_line("exited: keeper")
            stack.daemon.wait_line("spawned: 'keeper'")
    finally:
        client.close()
        stack.close()


def is_there(client: Keeper) -> bool:
    try:
        client.list("")
    except Unavailable:
        return False
    return True
