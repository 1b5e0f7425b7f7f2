"""Modules run by the driver: what they get, what comes back."""

from __future__ import annotations

import os
import signal
import struct
import time

import pytest

from kuasar.core.errors import (
    AlreadyExists,
    BackendFailed,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    Unimplemented,
    WrongState,
)
from tests.integration.agent_wasm.conftest import Agent, spec, write

pytestmark = pytest.mark.root
MIB = 1024 * 1024


def test_arguments_environment_and_streams(agent: Agent, rootfs: str) -> None:
    assert agent.create(rootfs, spec("/args.wasm", "a b", "", "ü")).run() == (0, "/args.wasm\0a b\0\0ü\0".encode(), b"")
    env = {"env": ["A=1", "B=x=y"], "cwd": "/etc"}
    assert agent.create(rootfs, spec("/env.wasm", process=env)).run() == (0, b"A=1\0B=x=y\0PWD=/etc\0", b"")
    assert agent.create(rootfs, spec("/stderr.wasm")).run() == (0, b"to stdout\n", b"to stderr\n")


def test_the_module_of_the_demonstration(agent: Agent, rootfs: str) -> None:
    code, out, err = agent.create(rootfs, spec("/hello.wasm", "one", "two")).run()
    assert (code, out, err) == (0, b"Hello from a WebAssembly container.\none\ntwo\n", b"")


def test_nothing_runs_before_start(agent: Agent, rootfs: str) -> None:
    container = agent.create(rootfs, spec("/early.wasm"))
    os.set_blocking(container.stdout.read, False)
    with pytest.raises(BlockingIOError):
        os.read(container.stdout.read, 1)
    os.set_blocking(container.stdout.read, True)
    assert container.run()[:2] == (0, b"early\nlate\n")


def test_standard_input_until_its_end(agent: Agent, rootfs: str) -> None:
    container = agent.create(rootfs, spec("/cat.wasm"))
    container.start()
    os.write(container.stdin.write, b"first ")
    assert container.stdout.take() == b"first "
    os.write(container.stdin.write, b"second")
    container.stdin.close_write()
    assert container.stdout.collect() == b"second"
    assert container.wait() == 0


def test_no_standard_streams(agent: Agent, rootfs: str) -> None:
    agent.call("create", "quiet", rootfs, spec("/cat.wasm"), False, 10.0)
    agent.call("start", "quiet")
    assert agent.call("wait", "quiet") == 0  # standard input is at its end at once
    agent.call("delete", "quiet")


def test_ten_mebibytes_come_out_whole(agent: Agent, rootfs: str) -> None:
    code, out, _ = agent.create(rootfs, spec("/flood.wasm")).run()
    assert code == 0
    assert out == struct.pack("<2621440I", *range(2621440))


def test_a_reader_that_goes_away_is_an_error_and_not_a_signal(agent: Agent, rootfs: str) -> None:
    container = agent.create(rootfs, spec("/flood.wasm"))
    container.stdout.close_read()
    container.start()
    assert container.wait() == 29  # the module exits with the error it saw: the engine makes "I/O error" of EPIPE


@pytest.mark.parametrize(("given", "code"), [("0", 0), ("1", 1), ("42", 42), ("126", 126), ("255", 255), ("256", 0)])
def test_the_exit_code_is_the_module_s(agent: Agent, rootfs: str, given: str, code: int) -> None:
    assert agent.create(rootfs, spec("/exit.wasm", given)).run()[0] == code


def test_a_trap_says_what_and_where(agent: Agent, rootfs: str) -> None:
    code, _, err = agent.create(rootfs, spec("/trap.wasm")).run()
    assert code == 134
    assert err.startswith(b"kuasar: /trap.wasm trapped:")
    assert b"give_up" in err
    assert b"unreachable" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_ends_a_busy_loop_at_once(agent: Agent, rootfs: str, number: signal.Signals) -> None:
    container = agent.create(rootfs, spec("/spin.wasm"))
    container.start()
    assert container.stdout.take() == b"spinning\n"
    before = time.monotonic()
    os.kill(container.pid, number)
    assert container.wait() == 128 + number
    assert time.monotonic() - before < 1


def test_memory_beyond_the_limit_is_refused_and_the_hint_says_so(agent: Agent, rootfs: str) -> None:
    limits = {"resources": {"memory": {"limit": 32 * MIB}}}
    code, _, err = agent.create(rootfs, spec("/grow.wasm", linux=limits)).run()
    assert code == 134
    assert err.startswith(b"refused\n")
    assert b"of at most 29360128 bytes (linux.resources.memory.limit)" in err


def test_a_module_that_wants_more_than_the_limit_from_the_start(agent: Agent, rootfs: str) -> None:
    limits = {"resources": {"memory": {"limit": 32 * MIB}}}
    code, out, err = agent.create(rootfs, spec("/greedy.wasm", linux=limits)).run()
    assert (code, out) == (126, b"")
    assert b"exceeds memory limits" in err
    assert agent.create(rootfs, spec("/greedy.wasm")).run() == (0, b"", b"")


# -- errors of create --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kind", "words"),
    [
        ("/foreign.wasm", BackendFailed, "unknown import: `env::launch_rocket`"),
        ("/library.wasm", BackendFailed, "a library, not a command"),
        ("/missing.wasm", InvalidArgument, "no file /missing.wasm in the image"),
        ("/etc", InvalidArgument, "not a regular file"),
        ("/etc/greeting", InvalidArgument, "not a WebAssembly module"),
        ("/native", InvalidArgument, "a native program; this runtime class runs WebAssembly modules only"),
        ("/script", InvalidArgument, "a script; this runtime class"),
        ("/component.wasm", InvalidArgument, "is a WebAssembly component"),
        ("/future.wasm", InvalidArgument, "has WebAssembly version 02000000"),
        ("/broken.wasm", BackendFailed, "broken.wasm"),
        ("/empty.wasm", InvalidArgument, "not a WebAssembly module"),
        ("/pipe.wasm", InvalidArgument, "not a regular file"),
    ],
)
def test_what_cannot_run_is_told_at_create(
    agent: Agent, rootfs: str, args: str, kind: type[Exception], words: str
) -> None:
    write(f"{rootfs}/native", b"\x7fELF\x02\x01\x01\x00 and more")
    write(f"{rootfs}/script", b"#!/bin/sh\n")
    write(f"{rootfs}/component.wasm", b"\0asm\x0d\0\1\0")
    write(f"{rootfs}/future.wasm", b"\0asm\2\0\0\0")
    write(f"{rootfs}/broken.wasm", b"\0asm\1\0\0\0" + b"\xff" * 100)
    write(f"{rootfs}/empty.wasm", b"")
    os.mkfifo(f"{rootfs}/pipe.wasm")
    with pytest.raises(kind) as caught:
        agent.create(rootfs, spec(args))
    assert words in str(caught.value)


def test_a_long_name_is_told_in_part(agent: Agent, rootfs: str) -> None:
    with pytest.raises((InvalidArgument, BackendFailed), match=r"cannot read module|no file") as caught:
        agent.create(rootfs, spec("/" + "x/" * 100_000))
    assert len(str(caught.value)) < 5000


def test_a_missing_root_file_system(agent: Agent, rootfs: str) -> None:
    with pytest.raises(BackendFailed, match="root file system /nowhere"):
        agent.create("/nowhere", spec("/hello.wasm"))


def test_the_deadline_ends_a_creation_and_a_retry_works(agent: Agent, rootfs: str) -> None:
    with pytest.raises(DeadlineExceeded, match=r"loading /hello\.wasm"):
        agent.create(rootfs, spec("/hello.wasm"), timeout=0.0)
    assert agent.create(rootfs, spec("/hello.wasm")).run()[0] == 0


def test_names(agent: Agent, rootfs: str) -> None:
    container = agent.create(rootfs, spec("/hello.wasm"))
    with pytest.raises(AlreadyExists):
        agent.call("create", container.name, rootfs, spec("/hello.wasm"), False, 10.0)
    with pytest.raises(NotFound):
        agent.call("start", "nobody")
    agent.call("delete", "nobody")
    assert container.run()[0] == 0


def test_a_container_is_started_once(agent: Agent, rootfs: str) -> None:
    container = agent.create(rootfs, spec("/hello.wasm"))
    assert container.run()[0] == 0
    with pytest.raises(WrongState) as caught:
        container.start()
    assert (caught.value.seen, caught.value.needed) == ("running", "created")


def test_a_process_that_was_killed_before_its_start(agent: Agent, rootfs: str) -> None:
    container = agent.create(rootfs, spec("/hello.wasm"))
    os.kill(container.pid, signal.SIGKILL)
    assert container.wait() == 128 + signal.SIGKILL
    with pytest.raises(BackendFailed, match="ended before it was started"):
        container.start()


def test_exec_says_what_to_do_instead(agent: Agent, rootfs: str) -> None:
    container = agent.create(rootfs, spec("/spin.wasm"))
    with pytest.raises(Unimplemented, match="has no shell or other program to run in it; read") as caught:
        agent.call("exec", container.name)
    assert (caught.value.engine, caught.value.capability) == ("wasmtime", "exec")
    agent.call("delete", container.name)
    assert agent.call("wait", container.name) == 1


def test_deleting_what_was_not_started_ends_its_process(agent: Agent, rootfs: str) -> None:
    container = agent.create(rootfs, spec("/spin.wasm"))
    agent.call("delete", container.name)
    agent.call("delete", container.name)
    assert container.wait() == 1


# -- terminal ----------------------------------------------------------------------------------------------------------


def test_a_terminal(agent: Agent, rootfs: str) -> None:
    container = agent.create(rootfs, spec("/cat.wasm", process={"user": {"uid": 1000, "gid": 1000}}), terminal=True)
    console = agent.consoles.pop()
    assert os.get_terminal_size(console) == (100, 30)
    container.start()
    os.write(console, b"hello\n")
    seen = b""
    while seen.count(b"hello\r\n") < 2:  # the terminal's echo, and the module's answer
        seen += os.read(console, 100)
    os.write(console, b"\x03")  # interrupt: the terminal is the process's controlling one
    assert container.wait() == 128 + signal.SIGINT
    os.close(console)


def test_a_hang_up_ends_it(agent: Agent, rootfs: str) -> None:
    container = agent.create(rootfs, spec("/spin.wasm"), terminal=True)
    container.start()
    os.close(agent.consoles.pop())
    assert container.wait() == 128 + signal.SIGHUP
