"""All that knows wasmtime: the engine's settings, compiling, linking, the WASI surroundings, the run.

Importing it starts no threads; everything else happens in a container's process only. Exit codes: what the module
gives to ``proc_exit`` (its low 8 bits, as the kernel has it), 0 if ``_start`` returns, 134 for a trap (as of the
``wasmtime`` command), 126 if it could not be instantiated. The words for the last two go to standard error.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgpack
import wasmtime

from kuasar.agent.drivers.wasm import privileges
from kuasar.agent.drivers.wasm.modules import ModuleCache
from kuasar.agent.drivers.wasm.plan import Plan, Preopen
from kuasar.core.errors import BackendFailed, InvalidArgument, ResourceExhausted
from kuasar.core.spawn import Exit

EXIT_TRAP = 134
EXIT_NOT_STARTED = 126
MAX_MODULE_BYTES = 256 * 1024 * 1024

_CONFIG = "1"
"""Part of the cache key: to be counted up when a setting of :func:`_new_engine` changes the code it makes."""

_PROC_EXIT = wasmtime.FuncType([wasmtime.ValType.i32()], [])
_MAGIC = b"\0asm"
_CORE_MODULE = b"\1\0\0\0"
_COMPONENT = b"\x0d\0\1\0"
_NEAR_LIMIT = 0.9
_MAX_WORDS = 2048


class Program:
    """A module that is ready to be started: compiled, and all its imports known."""

    note = ""
    """What the operator should know of how it was loaded; usually nothing."""

    def __init__(self, engine: wasmtime.Engine, module: wasmtime.Module, name: str) -> None:
        """Raises :class:`BackendFailed` if the module wants more than WASI preview 1, or is not a command."""
        self._engine = engine
        self._name = name
        linker = wasmtime.Linker(engine)
        linker.define_wasi()
        linker.allow_shadowing = True
        # The engine's own proc_exit makes a trap of every code above 125.
        linker.define_func("wasi_snapshot_preview1", "proc_exit", _PROC_EXIT, lambda code: os._exit(code & 0xFF))
        try:
            self._linked = linker.instantiate_pre(module)
        except wasmtime.WasmtimeError as exc:
            raise BackendFailed(
                f"{name}: {_one_line(exc)} (a container has the functions of wasi_snapshot_preview1, nothing else)"
            ) from exc
        start = next((export.type for export in module.exports if export.name == "_start"), None)
        if not isinstance(start, wasmtime.FuncType) or start.params or start.results:
            raise BackendFailed(
                f"{name}: exports no function _start without parameters and results: it is a library, not a command"
            )

    def prepare(self, plan: Plan, preopens: Sequence[Preopen]) -> None:
        """Give it its surroundings: arguments, environment, descriptors 0 to 2, directories, limits."""
        config = wasmtime.WasiConfig()
        config.argv = list(plan.argv)
        config.env = list(plan.env)
        config.inherit_stdin()
        config.inherit_stdout()
        config.inherit_stderr()
        for preopen in preopens:
            config.preopen_dir(preopen.path, preopen.name, preopen.writable)
        self._store = wasmtime.Store(self._engine)
        self._limit = plan.memory_limit
        if self._limit is not None:
            self._store.set_limits(memory_size=self._limit)
        self._store.set_wasi(config)

    def run(self) -> int:
        """Run it to its end; gives the exit code, unless the module ends the process itself (``proc_exit``)."""
        try:
            instance = self._linked.instantiate(self._store)
        except (wasmtime.Trap, wasmtime.WasmtimeError) as exc:
            _complain(f"{self._name} could not be instantiated: {exc}")
            return EXIT_TRAP if isinstance(exc, wasmtime.Trap) else EXIT_NOT_STARTED
        exports = instance.exports(self._store)
        try:
            exports["_start"](self._store)
        except (wasmtime.Trap, wasmtime.WasmtimeError) as exc:
            _complain(f"{self._name} trapped: {exc}{self._memory_hint(exports)}")
            return EXIT_TRAP
        return 0

    def _memory_hint(self, exports: wasmtime.InstanceExports) -> str:
        """Programs answer a refused ``memory.grow`` with a trap: say so when the memory is nearly at its limit."""
        memory = exports.get("memory")
        if self._limit is None or not isinstance(memory, wasmtime.Memory):
            return ""
        size = memory.data_len(self._store)
        if size < self._limit * _NEAR_LIMIT:
            return ""
        return f"\nits memory had grown to {size} of at most {self._limit} bytes (linux.resources.memory.limit)"


def load(module_fd: int, name: str, cache_dir: str) -> Program:
    """The program in the file ``module_fd``, from the cache in ``cache_dir`` or compiled now.

    Without a usable cache (full disk, read-only file system) the module is compiled all the same. Raises
    :class:`InvalidArgument` for what is no module, :class:`BackendFailed` with the engine's words for what cannot be
    compiled or linked.
    """
    require_module(os.pread(module_fd, 8, 0), os.fstat(module_fd).st_size, name)
    engine = _new_engine(parallel=False)
    try:
        return Program(engine, _load_cached(engine, module_fd, name, cache_dir), name)
    except OSError as exc:
        with open(os.memfd_create("module", os.MFD_CLOEXEC), "rb") as file:
            _compile_apart(module_fd, file.fileno(), name)
            program = Program(engine, _map(engine, file.fileno()), name)
        program.note = f"the module cache {cache_dir} cannot be used: {exc.strerror}"
        return program


def require_module(head: bytes, size: int, name: str) -> None:
    """Refuse, in words that help, what cannot be a module; ``head`` is the first 8 bytes of the file."""
    if size > MAX_MODULE_BYTES:
        raise ResourceExhausted(f"{name}: {size} bytes, a module may have at most {MAX_MODULE_BYTES}")
    if head[:4] == b"\x7fELF" or head[:2] == b"#!":
        kind = "a native program" if head[0] == 0x7F else "a script"
        raise InvalidArgument(
            f"process.args: {name} is {kind}; this runtime class runs WebAssembly modules only", field="process.args"
        )
    if head[:4] != _MAGIC:
        raise InvalidArgument(f"process.args: {name} is not a WebAssembly module", field="process.args")
    if head[4:] == _COMPONENT:
        raise InvalidArgument(
            f"process.args: {name} is a WebAssembly component; only core modules (WASI preview 1) can be run",
            field="process.args",
        )
    if head[4:] != _CORE_MODULE:
        raise InvalidArgument(
            f"process.args: {name} has WebAssembly version {head[4:].hex()}, only 1 is known", field="process.args"
        )


def cache_key() -> str:
    """Names what compiled code depends on: the engine's version, our settings, this processor."""
    version = _version()
    field = "flags" if platform.machine() == "x86_64" else "Features"
    with open("/proc/cpuinfo") as file:
        flags = next((line for line in file if line.startswith(field)), "")
    depends_on = "\n".join((version, _CONFIG, platform.machine(), " ".join(sorted(flags.split()))))
    return f"{version}-{hashlib.sha256(depends_on.encode()).hexdigest()[:16]}"


def _version() -> str:
    """The installed version, from the name of its metadata directory (importlib.metadata takes 18 ms for that)."""
    packages = os.path.dirname(os.path.dirname(wasmtime.__file__))
    found = (name for name in os.listdir(packages) if name.startswith("wasmtime-") and name.endswith(".dist-info"))
    return next(found, "wasmtime-unknown.dist-info").split("-")[1].removesuffix(".dist")


def _new_engine(parallel: bool) -> wasmtime.Engine:
    config = wasmtime.Config()
    config.parallel_compilation = parallel  # concerns threads only, not the code
    return wasmtime.Engine(config)


def _load_cached(engine: wasmtime.Engine, module_fd: int, name: str, cache_dir: str) -> wasmtime.Module:
    cache = ModuleCache(cache_dir, cache_key())
    digest = cache.digests.of(module_fd)

    def compile_to(fd: int) -> None:
        _compile_apart(module_fd, fd, name)

    for last in (False, True):
        fd = cache.get(digest, compile_to)
        try:
            return _map(engine, fd)
        except BackendFailed:
            # Undamaged, but made by an engine whose code this one cannot use although the key is the same.
            if last:
                raise
            cache.discard(digest)
        finally:
            os.close(fd)
    raise AssertionError("unreachable")


def _map(engine: wasmtime.Engine, fd: int) -> wasmtime.Module:
    """The compiled module in ``fd``, mapped, so that all containers of one module share its pages."""
    try:
        return wasmtime.Module.deserialize_file(engine, f"/proc/self/fd/{fd}")
    except wasmtime.WasmtimeError as exc:
        raise BackendFailed(f"the engine does not accept what it compiled: {_one_line(exc)}") from exc


def _compile_apart(module_fd: int, compiled_fd: int, name: str) -> None:
    """Compile in a process of its own: its threads must not be ours, its memory ends with it, it needs no rights.

    Raises :class:`BackendFailed` with the compiler's words, ``OSError`` if the result cannot be written.
    """
    receive, send = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        answer: dict[str, Any] = {"words": "failed"}
        try:
            os.close(receive)
            answer = _compile(module_fd, compiled_fd)
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


def _compile(module_fd: int, compiled_fd: int) -> dict[str, Any]:
    """The compiler's process: an empty answer, the ``words`` of the engine, or the ``errno`` of writing the result."""
    privileges.become_nobody()
    wasm = os.pread(module_fd, MAX_MODULE_BYTES, 0)
    try:
        compiled = memoryview(wasmtime.Module(_new_engine(parallel=True), wasm).serialize())
    except wasmtime.WasmtimeError as exc:
        return {"words": _one_line(exc)[:_MAX_WORDS]}
    try:
        while compiled:
            compiled = compiled[os.write(compiled_fd, compiled) :]
    except OSError as exc:
        return {"errno": exc.errno}
    return {}


def _complain(words: str) -> None:
    """To the container's standard error, where its user looks. Nobody may be reading it any more."""
    with suppress(OSError):
        os.write(2, f"kuasar: {words.rstrip()}\n".encode(errors="replace"))


def _one_line(exc: BaseException) -> str:
    """An error of the engine as one line: it stacks causes below each other."""
    lines = [line.strip() for line in str(exc).splitlines()]
    return " ".join(line for line in lines if line)
