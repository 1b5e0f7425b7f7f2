"""Commands in running containers: their output, their end, and what they leave behind."""

from __future__ import annotations

import hashlib
import time

import grpc
import pytest

from kuasar.cli.cri import CriError
from tests.deadline import eventually
from tests.e2e.engines import BOUNDED_DRAIN, EXEC, SHELL, TTY
from tests.e2e.harness import Container, Pod

pytestmark = pytest.mark.needs(EXEC, SHELL)


@pytest.fixture
def container(pod: Pod) -> Container:
    """A container that idles."""
    return pod.run_idle()


@pytest.mark.parametrize("code", [0, 1, 42, 126, 255])
def test_exit_code(container: Container, code: int) -> None:
    assert container.exec("sh", "-c", f"exit {code}").exit_code == code


def test_command_not_found_by_the_shell(container: Container) -> None:
    result = container.exec("sh", "-c", "no-such-command")
    assert result.exit_code == 127
    assert b"no-such-command: not found" in result.stderr


@pytest.mark.parametrize(("signal", "code"), [("KILL", 137), ("TERM", 143), ("SEGV", 139)])
def test_killed_by_a_signal(container: Container, signal: str, code: int) -> None:
    assert container.exec("sh", "-c", f"kill -{signal} $$").exit_code == code


def test_missing_program(container: Container) -> None:
    with pytest.raises(CriError, match="/no/such/program"):
        container.exec("/no/such/program")
    assert container.exec("true").exit_code == 0


def test_output_of_both_streams(container: Container) -> None:
    result = container.exec("sh", "-c", "echo out; echo err >&2")
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")


def test_large_output_is_exact(container: Container) -> None:
    result = container.exec("awk", 'BEGIN { for (i = 0; i < 131072; i++) printf "%031d\\n", i }')
    expected = b"".join(b"%031d\n" % i for i in range(131072))
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(expected).digest()


def test_environment_directory_and_user_are_those_of_the_container(pod: Pod) -> None:
    container = pod.run_idle(env={"COLOUR": "blue"}, working_dir="/tmp", user=1000, group=1000)
    assert container.sh("echo $COLOUR; pwd; id -u; id -g").split() == ["blue", "/tmp", "1000", "1000"]


@pytest.mark.needs(BOUNDED_DRAIN)
def test_grandchild_that_keeps_the_pipe_does_not_delay_the_answer(container: Container) -> None:
    started = time.monotonic()
    result = container.exec("sh", "-c", "sleep 3600 & echo done")
    assert (result.exit_code, result.stdout) == (0, b"done\n")
    assert time.monotonic() - started < 8
    assert container.exec("true").exit_code == 0


def test_timeout_kills_the_command(container: Container) -> None:
    with pytest.raises(CriError) as refused:
        container.exec("sleep", "3599", timeout=1)
    assert refused.value.code in {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNKNOWN}
    assert "timeout" in refused.value.message or "deadline" in refused.value.message
    look = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done"
    eventually(lambda: container.sh(look), "the command is gone", until=lambda seen: "sleep 3599" not in seen)


def test_many_at_once(container: Container) -> None:
    streams = [container.exec_stream("sh", "-c", f"read x; echo {n} $x", stdin=True) for n in range(10)]
    for stream in streams:
        stream.send_stdin(b"hello\n")
    for n, stream in enumerate(streams):
        with stream:
            result = stream.wait()
            assert (result.exit_code, result.stdout) == (0, b"%d hello\n" % n)


def test_stdin_to_the_end(container: Container) -> None:
    data = bytes(range(256)) * 4096
    with container.exec_stream("sha256sum", stdin=True) as stream:
        stream.send_stdin(data)
        stream.close_stdin()
        result = stream.wait()
    assert result.exit_code == 0
    assert result.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_streamed_exit_code(container: Container) -> None:
    with container.exec_stream("sh", "-c", "echo partly >&2; exit 42") as stream:
        result = stream.wait()
    assert (result.exit_code, result.stderr) == (42, b"partly\n")


@pytest.mark.needs(TTY)
def test_terminal_and_its_size(container: Container) -> None:
    with container.exec_stream("sh", tty=True, stdin=True) as stream:
        stream.send_stdin(b"tty && echo is a terminal\n")
        stream.read_until(b"is a terminal\r\n")
        stream.resize(101, 37)
        # the resize travels beside the input: ask until it has arrived
        stream.send_stdin(b"until [ \"$(stty size)\" = '37 101' ]; do :; done; echo 'resi''zed'\n")
        stream.read_until(b"resized\r\n")
        stream.send_stdin(b"exit 7\n")
        assert stream.wait().exit_code == 7


@pytest.mark.needs(TTY)
def test_terminal_delivers_control_c(container: Container) -> None:
    with container.exec_stream(
        "sh", "-c", "trap 'echo interrupted; exit 3' INT; echo rea''dy; while :; do sleep 1; done", tty=True, stdin=True
    ) as stream:
        stream.read_until(b"ready\r\n")
        stream.send_stdin(b"\x03")
        stream.read_until(b"interrupted\r\n")
        assert stream.wait().exit_code == 3


def test_exec_ends_with_its_container(container: Container) -> None:
    with container.exec_stream("sh", "-c", "echo up; sleep 3600") as stream:
        stream.read_until(b"up\n")
        container.stop()
        assert stream.wait().exit_code == 137


def test_exec_in_a_container_that_does_not_run_is_refused(pod: Pod) -> None:
    container = pod.create(pod.engine.programs.idle())
    with pytest.raises(CriError, match=r"(?i)not running|state"):
        container.exec("true")
    container.start()
    container.stop()
    with pytest.raises(CriError, match=r"(?i)not running|state"):
        container.exec("true")
