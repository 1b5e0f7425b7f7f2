"""What a container writes is in its log, every byte of it, in order, whenever it ends."""

from __future__ import annotations

import hashlib
import os

import pytest

from tests.deadline import eventually
from tests.e2e.engines import EXEC, SHELL, TTY, TTY_NAME
from tests.e2e.harness import Pod


def digest(data: bytes) -> tuple[int, str]:
    """Length and hash: what a failed comparison can show."""
    return len(data), hashlib.sha256(data).hexdigest()


def test_ten_mebibytes_are_exact(pod: Pod) -> None:
    command, expected = pod.engine.programs.flood()
    container = pod.run(command)
    assert container.wait(60).exit_code == 0
    eventually(lambda: len(container.log()), "the whole log", until=lambda size: size >= len(expected))
    assert digest(container.log()) == digest(expected)


@pytest.mark.needs(SHELL)
def test_both_streams_are_exact(pod: Pod) -> None:
    lines = 81920
    program = "BEGIN { for (i = 0; i < N; i++) { printf F, i; printf F, -i > E } }"
    variables = ["-v", f"N={lines}", "-v", "F=%063d\n", "-v", "E=/dev/stderr"]
    container = pod.run(["awk", *variables, program])
    assert container.wait(60).exit_code == 0
    out = b"".join(b"%063d\n" % i for i in range(lines))
    err = b"".join(b"%063d\n" % -i for i in range(lines))
    assert len(out + err) == 10 * 1024 * 1024
    seen = "both logs"
    eventually(lambda: len(container.log() + container.log("stderr")), seen, until=lambda size: size >= len(out + err))
    assert digest(container.log()) == digest(out)
    assert digest(container.log("stderr")) == digest(err)


@pytest.mark.needs(SHELL)
def test_bytes_of_every_value_and_long_lines(pod: Pod) -> None:
    container = pod.run(
        [
            "sh",
            "-c",
            "i=0; while [ $i -lt 256 ]; do printf \\\\$(printf %o $i); i=$((i+1)); done;"
            " head -c 100000 /dev/zero | tr '\\0' x; echo; printf 'no newline'",
        ]
    )
    assert container.wait().exit_code == 0
    expected = bytes(range(256)) + b"x" * 100000 + b"\nno newline"
    eventually(lambda: container.log().rstrip(b"\n"), "the whole log", until=lambda seen: seen == expected)


@pytest.mark.parametrize("turn", range(5))
def test_last_words_are_kept(pod: Pod, turn: int) -> None:
    command, expected = pod.engine.programs.say(f"last words {turn}")
    container = pod.run(command)
    assert container.wait().exit_code == 0
    eventually(lambda: container.log().rstrip(b"\n"), "the log", until=lambda seen: seen == expected.rstrip(b"\n"))


@pytest.mark.needs(SHELL)
def test_output_of_a_grandchild_that_outlives_the_shell_does_not_delay_the_end(pod: Pod) -> None:
    container = pod.run(["sh", "-c", "sleep 3600 & echo parent is done"])
    assert container.wait().exit_code == 0
    container.wait_for_log(b"parent is done\n")


@pytest.mark.needs(SHELL, EXEC)
def test_log_can_be_rotated_without_loss(pod: Pod) -> None:
    container = pod.run(
        ["sh", "-c", "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); usleep 500; done; sleep 3600"]
    )
    container.wait_for_log(b"\n100\n")
    moved = container.log_path + ".1"
    os.rename(container.log_path, moved)
    pod.cri.reopen_log(container.id)
    container.wait_for_log(b"\n2999\n")
    with open(moved, "rb") as file:
        before = [line.split(b" ", 3)[3] for line in file.read().splitlines()]
    assert before + container.log().splitlines() == [b"%d" % i for i in range(3000)]


@pytest.mark.needs(SHELL, TTY, TTY_NAME)
def test_terminal_output_is_logged(pod: Pod) -> None:
    container = pod.run(["sh", "-c", "tty; echo err >&2"], tty=True)
    assert container.wait().exit_code == 0
    seen = container.wait_for_log(b"err\n")
    assert seen.startswith(b"/dev/pts/")
