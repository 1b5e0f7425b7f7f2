"""All that knows wasmtime: the engine's settings, compiling, linking, the WASI surroundings, the run.

Importing it starts no threads; everything else happens in a container's process only. Exit codes: what the module
gives to ``proc_exit`` (its low 8 bits, as the kernel has it), 0 if ``_start`` returns, 134 for a trap (as of the
``wasmtime`` command), 126 if it could not be instantiated. The words for the last two go to standard error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import wasmtime

from kuasar.agent.drivers.base import Context, Driver, require_text
from kuasar.agent.drivers.wasm import privileges
from kuasar.agent.drivers.wasm.compiling import engine_key, load_compiled
from kuasar.agent.drivers.wasm.driver import WasmDriver
from kuasar.agent.drivers.wasm.engine import EXIT_NOT_STARTED, EXIT_TRAP, complain
from kuasar.agent.drivers.wasm.module import MAX_MODULE_BYTES, require_module
from kuasar.agent.drivers.wasm.plan import Needs, Plan, Preopen
from kuasar.core.errors import BackendFailed

_CONFIG = "1"
"""Part of the cache key: to be counted up when a setting of :func:`_new_engine` changes the code it makes."""

_PROC_EXIT = wasmtime.FuncType([wasmtime.ValType.i32()], [])
_NEAR_LIMIT = 0.9
_MAX_WORDS = 2048


def make(context: Context, options: Mapping[str, Any]) -> Driver:
    """The driver; ``options`` has ``cache_dir``."""
    return WasmDriver(context.loop, WasmtimeEngine(require_text(options, "cache_dir")))


class WasmtimeEngine:
    """See ``wasm/engine.py``. Compiled modules are kept in ``cache_dir``, which is made when it is first needed."""

    name = "wasmtime"
    needs = Needs()
    executes = False
    sockets = False

    def __init__(self, cache_dir: str) -> None:
        self._cache_dir = cache_dir

    async def check(self, plan: Plan, deadline: float | None) -> None:
        """Nothing that the plan can say is beyond it."""

    def load(self, module_fd: int, name: str, plan: Plan) -> Program:
        """See ``wasm/engine.py``."""
        # Threads are made by the engine when the module runs; one serves it, whatever the number of processors.
        os.environ["TOKIO_WORKER_THREADS"] = "1"
        require_module(os.pread(module_fd, 8, 0), os.fstat(module_fd).st_size, name)
        engine = _new_engine(parallel=False)
        key = engine_key(_version(), _CONFIG)
        module, note = load_compiled(module_fd, name, self._cache_dir, key, _compile, lambda fd: _map(engine, fd))
        program = Program(engine, module, name)
        program.note = note
        return program


class Program:
    """See ``wasm/engine.py``."""

    note = ""
    prefix = ""

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

    def furnish(self, plan: Plan) -> None:
        """Needs no files: it is in this process already."""

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
            complain(f"{self._name} could not be instantiated: {exc}")
            return EXIT_TRAP if isinstance(exc, wasmtime.Trap) else EXIT_NOT_STARTED
        exports = instance.exports(self._store)
        try:
            exports["_start"](self._store)
        except (wasmtime.Trap, wasmtime.WasmtimeError) as exc:
            complain(f"{self._name} trapped: {exc}{self._memory_hint(exports)}")
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


def _version() -> str:
    """The installed version, from the name of its metadata directory (importlib.metadata takes 18 ms for that)."""
    packages = os.path.dirname(os.path.dirname(wasmtime.__file__))
    found = (name for name in os.listdir(packages) if name.startswith("wasmtime-") and name.endswith(".dist-info"))
    return next(found, "wasmtime-unknown.dist-info").split("-")[1].removesuffix(".dist")


def _new_engine(parallel: bool) -> wasmtime.Engine:
    config = wasmtime.Config()
    config.parallel_compilation = parallel  # concerns threads only, not the code
    return wasmtime.Engine(config)


def _map(engine: wasmtime.Engine, fd: int) -> wasmtime.Module:
    """The compiled module in ``fd``, mapped, so that all containers of one module share its pages."""
    try:
        return wasmtime.Module.deserialize_file(engine, f"/proc/self/fd/{fd}")
    except wasmtime.WasmtimeError as exc:
        raise BackendFailed(f"the engine does not accept what it compiled: {_one_line(exc)}") from exc


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


def _one_line(exc: BaseException) -> str:
    """An error of the engine as one line: it stacks causes below each other."""
    lines = [line.strip() for line in str(exc).splitlines()]
    return " ".join(line for line in lines if line)
