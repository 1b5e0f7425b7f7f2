"""The filter of system calls, in a process of its own."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from collections.abc import Callable

import pytest

from kuasar.agent.drivers.wasm import seccomp, syscalls
from kuasar.core.errors import BackendFailed


def filtered(action: Callable[[], object]) -> int:
    """The exit code of a process that does ``action`` behind the filter: 0 for done, an errno, 255 otherwise."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
            seccomp.install()
            action()
            code = 0
        except OSError as exc:
            code = exc.errno or 254
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_a_thread() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.set)
    thread.start()
    thread.join()
    assert done.is_set()


def read_a_file() -> None:
    with open("/proc/self/status", "rb") as file:
        assert b"Seccomp:\t2" in file.read()


@pytest.mark.parametrize("action", [in_a_thread, read_a_file, os.pipe, lambda: os.kill(os.getpid(), 0)])
def test_what_the_engine_needs_is_allowed(action: Callable[[], object]) -> None:
    assert filtered(action) == 0


@pytest.mark.parametrize(
    "action",
    [
        lambda: os.execv("/bin/true", ["true"]),
        os.fork,
        lambda: os.posix_spawn("/bin/true", ["true"], {}),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
        lambda: syscalls.unshare(0x10000000),  # CLONE_NEWUSER
        lambda: syscalls.mount(None, "/", None, syscalls.MS_PRIVATE),
        lambda: os.chroot("/"),
        lambda: syscalls.clone_tree("/", recursive=False),
    ],
)
def test_what_leads_further_is_refused(action: Callable[[], object]) -> None:
    assert filtered(action) == 1  # EPERM


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 is an interface of x86_64 only")
def test_numbers_of_another_interface_kill() -> None:
    def getpid_of_x32() -> None:
        syscalls._syscall(0x40000000 + 39)

    assert filtered(getpid_of_x32) == -signal.SIGSYS


def test_both_architectures_are_known_and_others_refused() -> None:
    for machine in ("x86_64", "aarch64"):
        assert len(seccomp.build(machine)) % 8 == 0
    assert seccomp.build("x86_64") != seccomp.build("aarch64")
    with pytest.raises(BackendFailed, match="no system call filter for riscv64"):
        seccomp.build("riscv64")


def with_socket(family: int) -> int:
    """The errno of making a socket of ``family`` behind a filter that lets some through."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
            seccomp.install(executes=True, sockets=True)
            socket.socket(family, socket.SOCK_STREAM).close()
            code = 0
        except OSError as exc:
            code = exc.errno or 254
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_sockets_of_the_pod_s_network_can_be_allowed_and_no_others() -> None:
    assert with_socket(socket.AF_INET) == 0
    assert with_socket(socket.AF_INET6) == 0
    assert with_socket(socket.AF_UNIX) == errno.EPERM
    assert with_socket(socket.AF_PACKET) == errno.EPERM


def test_an_engine_can_be_executed_behind_the_filter() -> None:
    pid = os.fork()
    if pid == 0:
        try:
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
            seccomp.install(executes=True)
            os.execv("/bin/sh", ["sh", "-c", "exit 7"])
        finally:
            os._exit(255)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
