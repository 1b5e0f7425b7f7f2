"""``kuasarctl exec``: commands in the sandbox itself, as an operator gives them, on every engine of ours."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from kuasar.cli.cri import CriError
from kuasar.core import cgroup
from tests.deadline import eventually
from tests.e2e.engines import OURS, OWN_KERNEL
from tests.e2e.harness import Pod
from tests.e2e.test_restarts import kill

pytestmark = pytest.mark.needs(OURS)
SECONDS = 120.0


def argv(pod: Pod, *words: str) -> list[str]:
    return [sys.executable, "-m", "kuasar.cli.ctl.main", "--config", pod.stack.layout.config, "exec", *words]


def run(pod: Pod, *words: str, given: bytes | None = None) -> tuple[int, bytes, bytes]:
    """Exit code, output and errors of ``exec WORD...``, the pod's id in the place of ID."""
    command = argv(pod, *(pod.id if word == "ID" else word for word in words))
    done = subprocess.run(command, input=given, capture_output=True, timeout=SECONDS, check=False)
    return done.returncode, done.stdout, done.stderr


@contextmanager
def running(pod: Pod, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    command = argv(pod, *(pod.id if word == "ID" else word for word in words))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[bytes]) -> bytes:
    """Its next line of output."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], SECONDS)[0], "no output"
    return process.stdout.readline()


def commands(pod: Pod) -> list[str]:
    """Of the sandbox: what the gateway holds, and where the host sees them the cgroups of commands. A stand-in has its
    guest's own cgroup there, ``guest-PID``, which stays."""
    found = os.listdir(f"{pod.stack.layout.run}/commands") if Path(f"{pod.stack.layout.run}/commands").exists() else []
    for root in cgroup.current().roots():
        found += [
            str(path)
            for path in Path(root).rglob(f"kuasar-{pod.id}/*")
            if path.is_dir() and not path.name.startswith("guest-")
        ]
    return found


def none_left(pod: Pod) -> None:
    eventually(lambda: commands(pod), "nothing of a command is left", until=lambda left: not left)


def test_output_errors_and_exit_codes(pod: Pod) -> None:
    assert run(pod, "ID", "--", "sh", "-c", "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")
    assert run(pod, "ID", "--", "sh", "-c", "kill -TERM $$")[0] == 128 + signal.SIGTERM
    code, output, error = run(pod, "ID", "--", "no-such-program")
    assert (code, output) == (127, b"")
    assert error.startswith(b"kuasarctl: no-such-program: not found in /usr/local/sbin:")
    assert run(pod, "ID", "--", "/etc/passwd") == (
        126,
        b"",
        b"kuasarctl: /etc/passwd: /etc/passwd is no executable file\n",
    )
    assert run(pod, "-e", "A=b c", "-w", "/usr", "ID", "--", "sh", "-c", 'echo "$A" $PWD $HOME') == (
        0,
        b"b c /usr /root\n",
        b"",
    )
    none_left(pod)


def test_it_is_the_sandbox_and_no_container(pod: Pod) -> None:
    address = run(pod, "ID", "--", "ip", "-4", "-o", "addr", "show", "eth0")[1].decode()
    assert f" {pod.address}/" in address
    assert run(pod, "ID", "--", "cat", "/proc/1/comm")[1] in (b"kuasar-agent\n", b"python3.11\n")
    if OWN_KERNEL in pod.engine.capabilities:
        for command in (["dmesg"], ["mount"], ["ps"], ["ls", "/"], ["free"]):
            code, output, _ = run(pod, "ID", "--", *command)
            assert code == 0
            assert output


def test_what_goes_in_comes_out(pod: Pod) -> None:
    data = os.urandom(3 << 20)
    code, output, _ = run(pod, "-i", "ID", "--", "cat", given=data)
    assert code == 0
    assert hashlib.sha256(output).digest() == hashlib.sha256(data).digest()
    # without -i there is none, and input that nobody reads keeps nothing from ending
    assert run(pod, "ID", "--", "cat", given=b"not read")[:2] == (0, b"")
    assert run(pod, "-i", "ID", "--", "head", "-c", "3", given=data)[:2] == (0, data[:3])


def test_a_reader_that_takes_its_time_loses_nothing(pod: Pod) -> None:
    """The process has ended long before its output is read; others are served meanwhile."""
    with running(pod, "ID", "--", "seq", "200000") as process:
        assert line(process) == b"1\n"
        assert run(pod, "ID", "--", "echo", "other")[1] == b"other\n"
        assert process.stdout is not None
        rest = process.stdout.read()
        assert rest.splitlines() == [b"%d" % number for number in range(2, 200001)]
        assert process.wait(SECONDS) == 0


def test_time_that_is_over(pod: Pod) -> None:
    code, output, error = run(pod, "--timeout", "1", "ID", "--", "sh", "-c", "sleep 3600 & echo begun; sleep 3600")
    assert (code, output) == (124, b"begun\n")
    assert error == b"kuasarctl: timed out: it had not ended after 1 s\n"
    none_left(pod)


def test_what_a_command_leaves_behind_ends_with_it(pod: Pod) -> None:
    code, output, _ = run(pod, "ID", "--", "sh", "-c", "setsid sleep 3600 & echo $!")
    assert code == 0
    left = int(output)
    eventually(
        lambda: run(pod, "ID", "--", "kill", "-0", str(left))[0], "it is dead", until=lambda code: code not in (0, 127)
    )


def test_signals_are_passed_on(pod: Pod) -> None:
    trap = "trap 'echo got INT' INT; trap 'echo got USR1' USR1; echo ready; while :; do sleep 0.1; done"
    with running(pod, "ID", "--", "sh", "-c", trap) as process:
        assert line(process) == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert line(process) == b"got INT\n"
        process.send_signal(signal.SIGUSR1)
        assert line(process) == b"got USR1\n"
        process.send_signal(signal.SIGINT)
        assert line(process) == b"got INT\n"
        process.send_signal(signal.SIGINT)  # the third
        assert process.wait(SECONDS) == 130
    none_left(pod)


def test_signals_pass_input_that_nobody_reads(pod: Pod) -> None:
    with running(pod, "-i", "ID", "--", "sh", "-c", "echo ready; exec sleep 3600") as process:
        assert line(process) == b"ready\n"
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(process.stdin.fileno(), bytes(65536))
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 128 + signal.SIGTERM


def test_a_command_ends_with_the_one_who_wanted_it(pod: Pod) -> None:
    with running(pod, "ID", "--", "sh", "-c", "echo $$; sleep 3600") as process:
        pid = int(line(process))
        process.kill()
        process.wait(SECONDS)
    none_left(pod)
    eventually(lambda: run(pod, "ID", "--", "kill", "-0", str(pid))[0], "it is dead", until=lambda code: code == 1)


def test_a_worker_dies_and_its_commands_go_on(pod: Pod) -> None:
    with running(pod, "-i", "ID", "--", "cat") as process:
        assert process.stdin is not None
        process.stdin.write(b"before\n")
        process.stdin.flush()
        assert line(process) == b"before\n"
        kill(pod.stack, f"sandbox:{pod.id}")
        process.stdin.write(b"after\n")
        process.stdin.flush()
        assert line(process) == b"after\n"
        process.stdin.close()
        assert process.wait(SECONDS) == 0
    none_left(pod)


def test_the_gateway_dies_and_its_commands_with_it(pod: Pod) -> None:
    with running(pod, "ID", "--", "sh", "-c", "echo $$; sleep 3600") as process:
        pid = int(line(process))
        kill(pod.stack, "gateway")
        assert process.wait(SECONDS) == 125
        assert process.stderr is not None
        assert b"the gateway" in process.stderr.read()
    eventually(lambda: run(pod, "ID", "--", "true")[0], "the new gateway serves", until=lambda code: code == 0)
    eventually(lambda: run(pod, "ID", "--", "kill", "-0", str(pid))[0], "it is dead", until=lambda code: code == 1)
    none_left(pod)
    eventually(lambda: _is_stopped(pod), "containerd has dialled the new gateway")


def _is_stopped(pod: Pod) -> bool:
    """Stop it, as the kubelet does: again, while containerd has not found the new gateway."""
    try:
        pod.stop()
    except CriError as error:
        assert error.code == grpc.StatusCode.UNAVAILABLE, error
        return False
    return True


def test_the_sandbox_ends_and_the_reason_is_told(pod: Pod) -> None:
    with running(pod, "ID", "--", "sh", "-c", "echo ready; sleep 3600") as process:
        assert line(process) == b"ready\n"
        pod.stop()
        assert process.wait(SECONDS) == 125
        assert process.stderr is not None
        assert b"has ended" in process.stderr.read()
    code, _, error = run(pod, "ID", "--", "true")
    assert code == 125
    assert b"is stopped, it must be ready" in error


class Terminal:
    """A command in a terminal of ours."""

    def __init__(self, pod: Pod, *words: str) -> None:
        self.ours, theirs = pty.openpty()
        self.resize(100, 30)
        self.before = termios.tcgetattr(self.ours)
        command = argv(pod, "-it", pod.id, "--", *words)
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        self.seen = b""

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def wait_for(self, pattern: bytes) -> re.Match[bytes]:
        """Until it has been drawn; what came before is gone then."""
        while not (found := re.search(pattern, self.seen)):
            assert select.select([self.ours], [], [], SECONDS)[0], self.seen
            self.seen += os.read(self.ours, 65536)
        self.seen = self.seen[found.end() :]
        return found


@pytest.fixture
def terminal(pod: Pod) -> Iterator[Terminal]:
    made = Terminal(pod, "sh", "-c", "stty size; exec sh -i")
    yield made
    made.process.kill()
    made.process.wait()
    os.close(made.ours)


def test_a_shell_in_a_terminal(terminal: Terminal) -> None:
    terminal.wait_for(rb"30 100\r\n")
    terminal.wait_for(rb"# ")
    terminal.type(b"tty; echo $((40 + 2))\r")
    terminal.wait_for(rb"/dev/pts/\d+\r\n42\r\n")
    terminal.resize(71, 33)
    terminal.process.send_signal(signal.SIGWINCH)
    terminal.type(b"while ! stty size | grep '33 71'; do sleep 0.1; done\r")
    terminal.wait_for(rb"\n33 71\r\n")
    terminal.wait_for(rb"# ")  # or it comes between what is typed and what is said
    # Ctrl-C is a key: it ends what runs in the foreground, not the shell, and not kuasarctl
    terminal.type(b"echo go; sleep 3600\r")
    terminal.wait_for(rb"\ngo\r\n")
    terminal.type(b"\x03")
    terminal.type(b"echo status $?\r")
    terminal.wait_for(rb"status 130\r\n")
    terminal.type(b"exit 5\r")
    assert terminal.process.wait(SECONDS) == 5
    assert termios.tcgetattr(terminal.ours) == terminal.before


def test_what_is_asked_for_wrongly_is_refused(pod: Pod) -> None:
    code, _, error = run(pod, "no-such-sandbox", "--", "true")
    assert code == 125
    assert b"there is no sandbox 'no-such-sandbox'" in error
    code, _, error = run(pod, "-it", "ID", "--", "true", given=b"")
    assert code == 2
    assert b"standard input is no terminal" in error
    assert run(pod, "-e", "A", "ID", "--", "true")[0] == 2
    assert run(pod, "-w", "/no/such/directory", "ID", "--", "/bin/true")[0] == 126
    code, _, error = run(pod, "ID", "--", "")
    assert code == 127
