"""The door for child processes: exits in words, output, deadlines, descriptors, orphans."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from kuasar.core.aio import Loop
from kuasar.core.errors import BackendFailed, DeadlineExceeded
from kuasar.core.process import open_process, send_signal, start_time
from kuasar.core.spawn import Children, Exit
from kuasar.core.threads import in_thread


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def children(loop: Loop) -> Iterator[Children]:
    before = signal.getsignal(signal.SIGCHLD)
    made = Children(loop)
    yield made
    made.close()
    signal.signal(signal.SIGCHLD, before)


def is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # the directory that was read
        return False


@pytest.mark.parametrize(
    ("status", "exit_", "code", "words"),
    [
        (0, Exit(0), 0, "exited with 0"),
        (3 << 8, Exit(3), 3, "exited with 3"),
        (9, Exit(0, 9), 137, "killed by SIGKILL"),
        (63, Exit(0, 63), 191, "killed by signal 63"),
    ],
)
def test_exits(status: int, exit_: Exit, code: int, words: str) -> None:
    decoded = Exit.from_wait_status(status)
    assert (decoded, decoded.shell_code, decoded.words) == (exit_, code, words)


def test_run_collects_output_and_exit(loop: Loop, children: Children) -> None:
    done = loop.run(children.run(["/bin/sh", "-c", "echo out; echo err >&2; exit 4"]))
    assert (done.exit, done.output) == (Exit(4), b"out\nerr\n")


def test_much_output_is_cut_and_does_not_block(loop: Loop, children: Children) -> None:
    done = loop.run(children.run(["/bin/sh", "-c", "head -c 3000000 /dev/zero"], deadline=time.monotonic() + 20))
    assert done.exit == Exit(0)
    assert 256 * 1024 <= len(done.output) < 400 * 1024


def test_a_deadline_kills(loop: Loop, children: Children) -> None:
    with pytest.raises(DeadlineExceeded):
        loop.run(children.run(["/bin/sleep", "100"], deadline=time.monotonic() + 0.05))


def test_what_cannot_be_started_is_named(loop: Loop, children: Children) -> None:
    with pytest.raises(BackendFailed, match="/no/such/program: No such file"):
        loop.run(children.run(["/no/such/program"]))


def test_environment_and_descriptors_are_only_what_is_given(loop: Loop, children: Children) -> None:
    inherited = {fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and is_inheritable(fd)}
    done = loop.run(
        children.run(["/bin/sh", "-c", "env; ls /proc/self/fd; cat"], env={"PATH": "/bin:/usr/bin", "A": "b"})
    )
    lines = done.output.decode().split()
    assert "A=b" in lines
    assert not [line for line in lines if line.startswith(("HOME=", "PYTHON"))]
    # What whoever started the tests left open for everyone is not ours; 3 is the directory that ls reads.
    assert {int(line) for line in lines if line.isdigit()} - inherited - {3} == {0, 1, 2}


def test_descriptors_may_change_places(loop: Loop, children: Children) -> None:
    one_r, one_w = os.pipe()
    two_r, two_w = os.pipe()

    async def scenario() -> Exit:
        script = f"import os; os.write({two_w}, b'to-one'); os.write({one_w}, b'to-two')"
        _, ended = children.spawn([sys.executable, "-c", script], pass_fds={one_w: two_w, two_w: one_w})
        return await ended

    try:
        assert loop.run(scenario()) == Exit(0)
        os.set_blocking(one_r, False)
        os.set_blocking(two_r, False)
        assert (os.read(one_r, 99), os.read(two_r, 99)) == (b"to-one", b"to-two")
    finally:
        for fd in (one_r, one_w, two_r, two_w):
            os.close(fd)


def test_an_early_end_is_kept_for_whoever_claims_it(loop: Loop, children: Children) -> None:
    async def scenario() -> Exit:
        with children.keeping_orphans():
            pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 5"], {})
            while os.path.exists(f"/proc/{pid}"):
                await loop.sleep(0.001)
            return await children.claim(pid)

    assert loop.run(scenario()) == Exit(5)


def test_processes_are_known_by_start_time() -> None:
    pid = os.posix_spawn("/bin/sleep", ["sleep", "100"], {})
    started = start_time(pid)
    assert started is not None
    assert open_process(pid, started + 1) is None
    fd = open_process(pid, started)
    assert fd is not None
    assert send_signal(fd, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not send_signal(fd, signal.SIGKILL)
    assert start_time(pid) is None
    assert open_process(pid, started) is None
    os.close(fd)


def test_a_call_in_a_thread_gives_its_result_or_error(loop: Loop) -> None:
    def fail() -> None:
        raise OSError(5, "no")

    assert loop.run(in_thread(loop, os.getpid)) == os.getpid()
    with pytest.raises(OSError, match="no"):
        loop.run(in_thread(loop, fail))
