"""From a module file to its compiled form: out of the cache, or compiled in a process of its own and put there.

The same for every engine; what differs is the key, the compiler and the use that is made of the compiled file.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable
from typing import Any, TypeVar

import msgpack

from kuasar.agent.drivers.wasm.modules import ModuleCache
from kuasar.core.errors import BackendFailed
from kuasar.core.spawn import Exit

T = TypeVar("T")
Compiler = Callable[[int, int], dict[str, Any]]
"""From a module to its compiled form, both descriptors: an empty answer, the ``words`` of the engine, or the ``errno``
of writing the result. Runs in a process of its own and gives up its privileges first."""


def engine_key(version: str, settings: str) -> str:
    """Names what compiled code depends on: the engine's version, our settings of it, this processor."""
    field = "flags" if platform.machine() == "x86_64" else "Features"
    with open("/proc/cpuinfo") as file:
        flags = next((line for line in file if line.startswith(field)), "")
    depends_on = "\n".join((version, settings, platform.machine(), " ".join(sorted(flags.split()))))
    return f"{version}-{hashlib.sha256(depends_on.encode()).hexdigest()[:16]}"


def load_compiled(
    module_fd: int, name: str, cache_dir: str, key: str, compile_: Compiler, use: Callable[[int], T]
) -> tuple[T, str]:
    """What ``use`` makes of the compiled module, and a note for the operator, usually empty.

    ``use`` borrows a descriptor of the compiled file and raises :class:`BackendFailed` if it is of no use. Without a
    usable cache (full disk, read-only file system) the module is compiled all the same. Raises :class:`BackendFailed`
    with the engine's words.
    """
    try:
        return _use_cached(module_fd, name, ModuleCache(cache_dir, key), compile_, use), ""
    except OSError as exc:
        with open(os.memfd_create("module", os.MFD_CLOEXEC), "rb") as file:
            _compile_apart(module_fd, file.fileno(), name, compile_)
            return use(file.fileno()), f"the module cache {cache_dir} cannot be used: {exc.strerror}"


def _use_cached(module_fd: int, name: str, cache: ModuleCache, compile_: Compiler, use: Callable[[int], T]) -> T:
    digest = cache.digests.of(module_fd)

    def compile_to(fd: int) -> None:
        _compile_apart(module_fd, fd, name, compile_)

    for last in (False, True):
        fd = cache.get(digest, compile_to)
        try:
            return use(fd)
        except BackendFailed:
            # Undamaged, but made by an engine whose code this one cannot use although the key is the same.
            if last:
                raise
            cache.discard(digest)
        finally:
            os.close(fd)
    raise AssertionError("unreachable")


def _compile_apart(module_fd: int, compiled_fd: int, name: str, compile_: Compiler) -> None:
    """Compile in a process of its own: its threads must not be ours, its memory ends with it, it needs no rights.

    Raises :class:`BackendFailed` with the compiler's words, ``OSError`` if the result cannot be written.
    """
    receive, send = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        answer: dict[str, Any] = {"words": "failed"}
        try:
            os.close(receive)
            answer = compile_(module_fd, compiled_fd)
        finally:  # nothing may return into the caller's frames
            os.write(send, msgpack.packb(answer))
            os._exit(0)
    os.close(send)
    with open(receive, "rb") as file:
        message = file.read()
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status) or not message:
        raise BackendFailed(f"{name}: the compiler {Exit.from_wait_status(status).words}")
    answer = msgpack.unpackb(message)
    if "errno" in answer:
        raise OSError(answer["errno"], os.strerror(answer["errno"]))
    if "words" in answer:
        raise BackendFailed(f"{name}: {answer['words']}")
