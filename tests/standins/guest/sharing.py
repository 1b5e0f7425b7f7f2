"""What a file server (virtiofsd) serves, as a mount of the guest: cloned from where the server itself sees it."""

from __future__ import annotations

import ctypes
import os
import time
from contextlib import suppress

from kuasar.agent import kernel
from kuasar.core.namespaces import setns

_OPEN_TREE, _MOVE_MOUNT = 428, 429
_CLONE, _CLOEXEC, _RECURSIVE, _EMPTY_PATH = 0x1, 0x80000, 0x8000, 0x4
_AT_FDCWD = -100
_SECONDS = 10.0
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def find_server(path: str) -> tuple[int, str]:
    """The process that serves the socket ``path``, which it was given or which is beside or below what it serves, and
    the directory that it serves. Raises ``LookupError``."""
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words = os.fsdecode(file.read()).split("\0")
            source = _source(words)
            named = any(word == path or word.endswith(f"={path}") for word in words)
            if source and (named or path.startswith(f"{os.path.dirname(source)}/")):
                return int(name), source
    raise LookupError(f"no file server is behind {path}")


def _source(words: list[str]) -> str:
    """``-o source=DIRECTORY,…`` of QEMU's virtiofsd, and how others spell it."""
    for before, word in zip(["", *words], words, strict=False):
        if word.startswith(("source=", "--shared-dir=")):
            return word.partition("=")[2].partition(",")[0]
        if before in ("-source", "--shared-dir"):
            return word
    return ""


def show(server: int, source: str, guest: int, target: str) -> None:
    """Mount what process ``server`` serves on ``target`` as process ``guest`` sees it; what the host mounts there later
    appears, too. Changes the caller's mount namespace for good: call it in a process of its own."""
    guests = os.open(f"/proc/{guest}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    _enter(server, os.stat(source))
    tree = _checked(_libc.syscall(_OPEN_TREE, _AT_FDCWD, b"/", _CLONE | _CLOEXEC | _RECURSIVE), source)
    setns(guests, kernel.CLONE_NEWNS)
    os.makedirs(target, exist_ok=True)
    _checked(_libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _EMPTY_PATH), target)


def _enter(server: int, wanted: os.stat_result) -> None:
    """Join the server's mount namespace once nothing but ``wanted`` can be seen in it, which the server sees to when it
    has been connected to: for a moment the host's root still lies over it. Raises ``TimeoutError``."""
    deadline = time.monotonic() + _SECONDS

    def wait() -> None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {server} does not shut itself in")
        time.sleep(0.005)

    while not os.path.samestat(os.stat(f"/proc/{server}/root"), wanted):
        wait()
    namespace = os.open(f"/proc/{server}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    setns(namespace, kernel.CLONE_NEWNS)
    while not os.path.samestat(os.stat("/"), wanted):
        wait()
        setns(namespace, kernel.CLONE_NEWNS)


def _checked(result: int, path: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result
