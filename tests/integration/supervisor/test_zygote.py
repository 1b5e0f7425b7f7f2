"""The zygote by itself: a real one, asked by this process, well and badly."""

from __future__ import annotations

import array
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest

from kuasar.core.config import Config, load
from kuasar.core.errors import Unavailable
from kuasar.supervisor import zygote_client, zygote_wire
from kuasar.supervisor.zygote_wire import CLONE_NEWIPC, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUTS
from tests.integration.supervisor.stack import PATIENCE, ROOT, Control, wait_pidfd

AGENT_FLAGS = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS


def start_zygote(config: Config, module: str = "tests.integration.supervisor.zygote_main") -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", module, "--config", config.path, "--announce"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait_ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if b"kuasar-zygote ready" in line:
            return
    raise AssertionError(f"the zygote ended: {b''.join(seen).decode()}")


def write_config(directory: str, extra: str = "") -> Config:
    path = Path(directory, "kuasar.toml")
    path.write_text(
        f'state_dir = "{directory}/s"\nlog_dir = "{directory}/l"\n'
        f'[supervisor]\nzygote = "{directory}/s/z.sock"\n{extra}'
    )
    os.makedirs(f"{directory}/s", mode=0o700, exist_ok=True)
    return load(str(path))


@pytest.fixture
def config(directory: str, no_leaks: None) -> Config:
    return write_config(directory, 'preload = ["kuasar_has_no_such_module", "wasmtime"]\n')


@pytest.fixture
def zygote(config: Config) -> Iterator[subprocess.Popen[bytes]]:
    with start_zygote(config) as process:
        wait_ready(process)
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def control(config: Config) -> Iterator[Control]:
    made = Control(f"{config.state_dir}/control.sock")
    yield made
    made.close()


class Agents:
    """Forks agents as a worker does, and ends them."""

    def __init__(self, config: Config, stack: ExitStack) -> None:
        self.config = config
        self._stack = stack
        self.log = Path(config.state_dir, "agent.log")

    def fork(self, flags: int = 0, **args: Any) -> zygote_client.Clone:
        with ExitStack() as mine:
            listener = mine.enter_context(socket.socket(socket.AF_UNIX))
            log = mine.enter_context(self.log.open("ab"))
            args = {"name": "agent", "control": f"{self.config.state_dir}/control.sock", **args}
            request = {"kind": "agent", "title": "kuasar-agent pod-1", "args": args, "flags": flags}
            fds = [listener.fileno(), log.fileno()]
            clone = zygote_client.fork(self.config.supervisor.zygote, request, fds, PATIENCE)
        self._stack.callback(_kill, os.pidfd_open(clone.pid))
        return clone


def _kill(pidfd: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    wait_pidfd(pidfd)


@pytest.fixture
def agents(config: Config) -> Iterator[Agents]:
    with ExitStack() as stack:
        yield Agents(config, stack)


@pytest.mark.root
def test_an_agent_is_pid_1_of_its_own_namespaces(
    zygote: subprocess.Popen[bytes], control: Control, agents: Agents
) -> None:
    with agents.fork(AGENT_FLAGS) as clone:
        clone.commit()
        peer = control.next("agent")
    assert peer.pid == clone.pid
    assert (peer.facts["pid"], peer.facts["ppid"], peer.facts["sid"]) == (1, 0, 1)
    # /proc is still the host's, so what it says of itself is the zygote's: look from outside
    assert Path(f"/proc/{clone.pid}/cmdline").read_bytes() == b"kuasar-agent pod-1\0"
    assert Path(f"/proc/{clone.pid}/comm").read_text() == "kuasar-agent\n"
    for name in ("pid", "mnt", "ipc", "uts"):
        assert os.readlink(f"/proc/{clone.pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
    for name in ("net", "user"):
        assert os.readlink(f"/proc/{clone.pid}/ns/{name}") == os.readlink(f"/proc/self/ns/{name}")
    opened = {fd: os.readlink(f"/proc/{clone.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{clone.pid}/fd")}
    assert opened.keys() == {"0", "1", "2", "3", "4"}  # the last is its line to this test
    assert opened["0"] == "/dev/null"
    assert opened["1"] == opened["2"] == str(agents.log)
    assert opened["3"].startswith("socket:")
    assert "flags:\t02" in Path(f"/proc/{clone.pid}/fdinfo/3").read_text()  # O_CLOEXEC: not for containers
    assert agents.log.read_text() == "agent here\n"


@pytest.mark.root
def test_an_agent_survives_the_zygote(zygote: subprocess.Popen[bytes], control: Control, agents: Agents) -> None:
    clone = agents.fork(AGENT_FLAGS)
    clone.commit()
    clone.commit()  # harmless
    peer = control.next("agent")
    zygote.kill()
    zygote.wait(PATIENCE)
    peer.ask("print still here")
    assert "still here" in agents.log.read_text()


def test_without_the_go_byte_nothing_runs(zygote: subprocess.Popen[bytes], control: Control, agents: Agents) -> None:
    with agents.fork() as clone:
        pidfd = os.pidfd_open(clone.pid)
    wait_pidfd(pidfd)
    assert agents.log.read_text() == ""
    with pytest.raises(Unavailable, match="before it was let go"):
        clone.commit()


def test_a_requester_that_dies_takes_the_waiting_clone_along(
    zygote: subprocess.Popen[bytes], config: Config, agents: Agents
) -> None:
    script = (
        "import sys, os\nfrom kuasar.supervisor import zygote_client\n"
        "request = {'kind': 'agent', 'title': 't', 'args': {}, 'flags': 0}\n"
        f"clone = zygote_client.fork({config.supervisor.zygote!r}, request, [0, 1], 10)\n"
        "print(clone.pid, flush=True)\nsys.stdin.read()\n"
    )
    requester = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with requester:
        assert requester.stdout is not None
        pidfd = os.pidfd_open(int(requester.stdout.readline()))
        requester.kill()
    wait_pidfd(pidfd)


def test_an_exception_in_the_clone_is_in_its_log_only(
    zygote: subprocess.Popen[bytes], control: Control, agents: Agents
) -> None:
    clone = agents.fork(fail="so it goes")
    pidfd = os.pidfd_open(clone.pid)
    clone.commit()
    wait_pidfd(pidfd)
    assert "RuntimeError: so it goes" in agents.log.read_text()
    assert_serves(agents, control)


def assert_serves(agents: Agents, control: Control) -> None:
    with agents.fork(name="check") as clone:
        clone.commit()
    assert control.next("check").pid == clone.pid


GOOD: dict[str, Any] = {"kind": "agent", "title": "t", "args": {}, "flags": 0}


@pytest.mark.parametrize(
    ("data", "descriptors", "words"),
    [
        (b"\xc1", 2, "not msgpack"),
        (b"\x81", 2, "not msgpack"),
        (msgpack.packb([1, 2]), 2, "a map with string keys"),
        (msgpack.packb({b"x": 2}), 2, "a map with string keys"),
        (msgpack.packb({**GOOD, "more": 2}), 2, "unknown keys more"),
        (msgpack.packb({"kind": "agent"}), 2, "title: str is needed, got NoneType"),
        (msgpack.packb({**GOOD, "args": [1]}), 2, "args: dict is needed, got list"),
        (msgpack.packb({**GOOD, "args": {b"x": 1}}), 2, "args: a map with string keys"),
        (msgpack.packb({**GOOD, "title": "a\nb"}), 2, "title: 1 to 128 printable"),
        (msgpack.packb({**GOOD, "title": "x" * 129}), 2, "title: 1 to 128 printable"),
        (msgpack.packb({**GOOD, "flags": 1}), 2, "flags: 1 is not"),
        (msgpack.packb({**GOOD, "flags": 0x8000}), 2, "flags: 32768 is not"),  # CLONE_PARENT is not for the asking
        (msgpack.packb({**GOOD, "flags": True}), 2, "flags: True is not"),
        (msgpack.packb({**GOOD, "kind": "shell"}), 2, "kind: 'shell' is none of agent, worker"),
        (msgpack.packb({**GOOD, "kind": "worker", "flags": CLONE_NEWPID}), 3, "a worker gets no namespaces"),
        (msgpack.packb(GOOD), 0, "2 descriptors are needed, got 0"),
        (msgpack.packb(GOOD), 8, "2 descriptors are needed, got 8"),
        (msgpack.packb(GOOD), 17, "more than 16 descriptors"),
        (msgpack.packb({**GOOD, "args": {"x": "x" * 65536}}), 2, "at most 65536 are allowed"),
    ],
)
def test_malformed_requests_are_answered_and_forgotten(
    zygote: subprocess.Popen[bytes],
    config: Config,
    control: Control,
    agents: Agents,
    data: bytes,
    descriptors: int,
    words: str,
) -> None:
    before = len(os.listdir(f"/proc/{zygote.pid}/fd"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection, open(os.devnull) as null:
        connection.settimeout(PATIENCE)
        connection.connect(config.supervisor.zygote)
        fds = array.array("i", [null.fileno()] * descriptors)
        connection.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if descriptors else [])
        answer = zygote_wire.decode_reply(connection.recv(8192))
        assert isinstance(answer, str)
        assert words in answer
        assert connection.recv(1) == b""
    assert_serves(agents, control)
    assert len(os.listdir(f"/proc/{zygote.pid}/fd")) == before


def test_silent_and_vanishing_requesters_block_nobody(
    zygote: subprocess.Popen[bytes], config: Config, control: Control, agents: Agents
) -> None:
    with ExitStack() as stack:
        silent = []
        for _ in range(260):
            connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            connection.settimeout(PATIENCE)
            connection.connect(config.supervisor.zygote)
            silent.append(connection)
        answers = [zygote_wire.decode_reply(connection.recv(8192)) for connection in silent]
    assert any("256 connections wait already" in str(answer) for answer in answers)
    assert any("no request within 2 s" in str(answer) for answer in answers)
    for _ in range(10):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(config.supervisor.zygote)
    assert_serves(agents, control)


def test_a_worker_is_made_for_the_zygotes_parent_only(zygote: subprocess.Popen[bytes], config: Config) -> None:
    script = (
        "import sys\nfrom kuasar.supervisor import zygote_client\n"
        "request = {'kind': 'worker', 'title': 't', 'args': {'sandbox': 'x'}, 'flags': 0}\n"
        f"zygote_client.fork({config.supervisor.zygote!r}, request, [0, 1, 2], 10)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert f"a worker is made for process {os.getpid()} only" in done.stderr


@pytest.mark.root
def test_another_user_is_refused(zygote: subprocess.Popen[bytes], config: Config) -> None:
    # even if somebody opened the door
    os.chmod(os.path.dirname(config.state_dir), 0o755)
    os.chmod(config.state_dir, 0o755)
    os.chmod(config.supervisor.zygote, 0o666)
    script = (
        "import os, socket, sys\nos.setuid(65534)\n"
        "c = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        f"c.connect({config.supervisor.zygote!r})\nprint(c.recv(8192).decode())\n"
    )
    done = subprocess.run(["/usr/bin/python3", "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert "error: only user 0 may ask, not 65534" in done.stdout, done.stderr


def test_its_socket_is_for_its_owner_only(zygote: subprocess.Popen[bytes], config: Config) -> None:
    assert os.stat(config.supervisor.zygote).st_mode & 0o777 == 0o600


def output_of(config: Config) -> tuple[int, str]:
    """Exit code and output of the shipped zygote, which is expected to end by itself."""
    with start_zygote(config, "kuasar.supervisor.zygote") as process:
        output, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, output.decode()


def test_a_second_zygote_gives_way(
    zygote: subprocess.Popen[bytes], config: Config, control: Control, agents: Agents
) -> None:
    code, output = output_of(config)
    assert code == 1
    assert f"another zygote listens on {config.supervisor.zygote}" in output
    assert_serves(agents, control)


def test_what_a_dead_zygote_left_is_replaced(
    zygote: subprocess.Popen[bytes], config: Config, control: Control, agents: Agents
) -> None:
    zygote.kill()
    zygote.wait(PATIENCE)
    assert os.path.exists(config.supervisor.zygote)
    with start_zygote(config) as successor:
        wait_ready(successor)
        assert_serves(agents, control)
        successor.kill()


def test_an_open_directory_is_refused(directory: str, no_leaks: None) -> None:
    config = write_config(directory)
    os.chmod(config.state_dir, 0o755)
    code, output = output_of(config)
    assert code == 1
    assert "has mode 0755, but only its owner may enter" in output


def test_a_preload_that_starts_a_thread_is_refused(directory: str, no_leaks: None) -> None:
    module = "tests.integration.supervisor.threaded"
    code, output = output_of(write_config(directory, f'preload = ["{module}"]\n'))
    assert code == 1
    assert f"supervisor.preload: importing {module} starts a thread" in output


def test_a_bad_configuration_is_told_with_file_and_key(directory: str, no_leaks: None) -> None:
    path = Path(directory, "kuasar.toml")
    path.write_text("[supervisor]\nzygot = 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "kuasar.supervisor.zygote", "--config", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert f"{path}: supervisor.zygot: unknown key" in done.stderr


def test_the_shipped_zygote_preloads_without_threads(config: Config) -> None:
    with start_zygote(config, "kuasar.supervisor.zygote") as process:
        wait_ready(process)
        assert len(os.listdir(f"/proc/{process.pid}/task")) == 1
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "wasmtime" in maps
        assert "zmq" in maps
        process.kill()


def test_asking_nobody(config: Config) -> None:
    with pytest.raises(Unavailable, match="away: No such file"):
        zygote_client.fork(config.supervisor.zygote, GOOD, [], 1.0)
