"""All that knows WasmEdge: finding its program, compiling, the surroundings, the run.

The container's process becomes the ``wasmedge`` program, in a root of its own that holds the program's files, the
compiled module and, below ``/.kuasar``, the container's root file system, from which nothing can be executed. Exit
codes are the program's: the module's (``proc_exit``, low 8 bits), 0 if ``_start`` returns, 134 for a trap. What the
engine itself has to say it writes to standard output: it knows no other place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from kuasar.agent.drivers.base import Context, Driver, require_text
from kuasar.agent.drivers.wasm import native, privileges, rootfs, seccomp
from kuasar.agent.drivers.wasm import syscalls as sys
from kuasar.agent.drivers.wasm.compiling import engine_key, load_compiled
from kuasar.agent.drivers.wasm.driver import WasmDriver
from kuasar.agent.drivers.wasm.engine import EXIT_NOT_STARTED, complain
from kuasar.agent.drivers.wasm.module import MAX_MODULE_BYTES, PAGE, Interface, read_interface, require_module
from kuasar.agent.drivers.wasm.native import Native
from kuasar.agent.drivers.wasm.plan import Needs, Plan, Preopen
from kuasar.core.errors import BackendFailed, InvalidArgument
from kuasar.core.spawn import MINIMAL_ENV, Children, Exit

ANNOTATIONS = "io.kuasar.wasmedge."
PLUGINS = f"{ANNOTATIONS}plugins"
"""Annotation: the plug-ins a container may use, by name, commas between them; none without it."""
_HINT = "name it with `binary` of the engine in kuasar.toml"
_LEAST_VERSION = (0, 14)
_WASI = "wasi_snapshot_preview1"
_CONFIG = "1"
"""Part of the cache key: to be counted up when our way to compile changes."""
_OURS = "/.kuasar"  # no path of the engine's files
_START, _MODULE, _CONTAINER, _WORK = (f"{_OURS}/{name}" for name in ("start", "module", "container", "work"))
_PLUGIN_FILE = re.compile(r"libwasmedgePlugin\w+\.so")
_PLUGIN_LINE = re.compile(r'\(plugin "([^"]+)"\)')
_VERSION_LINE = re.compile(r"\bwasmedge version (\d+)\.(\d+)\S*")
_ERROR_LINE = re.compile(r"\[[^\]]*\] \[error\]\s+(.*)")


def make(context: Context, options: Mapping[str, Any]) -> Driver:
    """The driver; ``options`` has ``cache_dir`` and may have ``binary`` and ``plugin_dir``."""
    engine = WasmEdgeEngine(
        context.children,
        require_text(options, "binary", default="wasmedge"),
        require_text(options, "cache_dir"),
        require_text(options, "plugin_dir", default=""),
    )
    return WasmDriver(context.loop, engine)


class WasmEdgeEngine:
    """See ``wasm/engine.py``. ``plugin_dir`` holds plug-ins beside those built in; empty for none."""

    name = "wasmedge"
    needs = Needs(threads=4, memory_bytes=16 * 1024 * 1024)
    executes = True
    sockets = True

    def __init__(self, children: Children, binary: str, cache_dir: str, plugin_dir: str) -> None:
        self._children = children
        self._binary = binary
        self._cache_dir = cache_dir
        self._plugin_dir = plugin_dir
        self._native: Native | None = None

    async def check(self, plan: Plan, deadline: float | None) -> None:
        """Refuse a missing or too old program, annotations and paths that it does not know."""
        if self._native is None:
            self._native = await self._inspect(deadline)
        chosen_plugins(plan.annotations, available_plugins(self._native.version))
        for mount in plan.mounts:
            if ":" in mount.destination:
                field = f"{mount.field}.destination"
                raise InvalidArgument(f"{field}: {mount.destination!r}: this engine takes no ':' in it", field=field)
        if ":" in plan.cwd:
            raise InvalidArgument(f"process.cwd: {plan.cwd!r}: this engine takes no ':' in it", field="process.cwd")

    async def _inspect(self, deadline: float | None) -> Native:
        program = native.find_program(self._binary, _HINT)
        env = {**MINIMAL_ENV, **({"WASMEDGE_PLUGIN_PATH": self._plugin_dir} if self._plugin_dir else {})}
        record = f"{self._cache_dir}/engine.json"
        found = await native.inspect(self._children, program, ["--version"], record, env, deadline)
        require_version(program, found.version)
        return found

    def load(self, module_fd: int, name: str, plan: Plan) -> Program:
        """See ``wasm/engine.py``."""
        assert self._native is not None, "check comes first"
        engine = self._native
        require_module(os.pread(module_fd, 8, 0), os.fstat(module_fd).st_size, name)

        def compile_(source: int, compiled: int) -> dict[str, Any]:
            return _compile(engine, plan.rootfs, source, compiled)

        key = engine_key(require_version(engine.program, engine.version), _CONFIG)
        compiled, note = load_compiled(module_fd, name, self._cache_dir, key, compile_, os.dup)
        os.set_inheritable(compiled, False)
        available = available_plugins(engine.version)
        chosen = chosen_plugins(plan.annotations, available)
        require_runnable(read_interface(os.pread(module_fd, MAX_MODULE_BYTES, 0), name), name, plan, bool(chosen))
        plugins = self._plugin_files() if chosen else ()
        program = Program(engine, compiled, name, sorted(set(available) - set(chosen)), plugins)
        program.note = note
        return program

    def _plugin_files(self) -> tuple[str, ...]:
        if not self._plugin_dir:
            return ()
        names = sorted(os.listdir(self._plugin_dir))
        return tuple(f"{self._plugin_dir}/{name}" for name in names if _PLUGIN_FILE.fullmatch(name))


def require_version(program: str, said: str) -> str:
    """The version, in a word, of the answer ``said`` to ``--version``. Raises :class:`BackendFailed` unless it is a
    WasmEdge's that we know."""
    match = _VERSION_LINE.search(said)
    if match is None:
        raise BackendFailed(f"{program} is no WasmEdge: asked for its version it says {said!r:.200}")
    if (int(match[1]), int(match[2])) < _LEAST_VERSION:
        least = ".".join(map(str, _LEAST_VERSION))
        raise BackendFailed(f"{program}: {match[0]} is too old, {least} or newer is needed")
    return match[0].replace(" version ", "-")


def available_plugins(said: str) -> tuple[str, ...]:
    """The plug-ins that an answer to ``--version`` lists."""
    return tuple(_PLUGIN_LINE.findall(said))


def chosen_plugins(annotations: Mapping[str, str], available: Sequence[str]) -> tuple[str, ...]:
    """What the annotations ask for. Raises :class:`InvalidArgument` naming the annotation that is wrong."""
    for key in annotations:
        if key.startswith(ANNOTATIONS) and key != PLUGINS:
            raise InvalidArgument(f"annotation {key}: unknown (there is: {PLUGINS})", field=f"annotations.{key}")
    chosen = tuple(name.strip() for name in annotations.get(PLUGINS, "").split(",") if name.strip())
    unknown = sorted(set(chosen) - set(available))
    if unknown:
        words = f"no plug-in {', '.join(unknown)} (there are: {', '.join(available) or 'none'})"
        raise InvalidArgument(f"annotation {PLUGINS}: {words}", field=f"annotations.{PLUGINS}")
    return chosen


def require_runnable(interface: Interface, name: str, plan: Plan, has_plugins: bool) -> None:
    """Say before the start what the engine would only say after it."""
    for module, function in interface.imports:
        if module != _WASI and not has_plugins:
            raise BackendFailed(
                f"{name}: unknown import: `{module}::{function}` (a container has the functions of {_WASI} and of the "
                f"plug-ins that the annotation {PLUGINS} names, nothing else)"
            )
    if not interface.is_command:
        raise BackendFailed(
            f"{name}: exports no function _start without parameters and results: it is a library, not a command"
        )
    if plan.memory_limit is not None and interface.memory_bytes > plan.memory_limit:
        raise InvalidArgument(
            f"{name}: wants {interface.memory_bytes} bytes of memory at its start, which exceeds memory limits: "
            f"at most {plan.memory_limit} (linux.resources.memory.limit)",
            field="linux.resources.memory.limit",
        )


class Program:
    """See ``wasm/engine.py``."""

    note = ""
    prefix = _CONTAINER

    def __init__(
        self, engine: Native, compiled: int, name: str, forbidden: Sequence[str], plugins: Sequence[str]
    ) -> None:
        self._engine = engine
        self._compiled = compiled
        # the engine makes of this the first argument that the module sees
        self._module = f"{_MODULE}/{os.path.basename(name)}"
        # and this is what ps shows
        self._start = f"{_START}/{os.path.basename(name)}"
        self._forbidden = forbidden
        self._plugins = plugins
        self.argv: list[str] = []
        """What will be executed, from ``prepare`` on."""

    def furnish(self, plan: Plan) -> None:
        """A root of the engine's files, with the container's below it."""
        container = sys.clone_tree(plan.rootfs, recursive=True)
        sys.set_mount_attributes(container, sys.MOUNT_ATTR_NOEXEC, 0, 0, recursive=True)
        native.furnish(self._engine, plan.rootfs)
        for path in self._plugins:
            _place(path, f"{plan.rootfs}/plugins/{os.path.basename(path)}")
        _place(f"/proc/self/fd/{self._compiled}", plan.rootfs + self._module)
        _place(self._engine.argv[0], plan.rootfs + self._start)
        os.makedirs(plan.rootfs + _CONTAINER)
        sys.attach_tree(container, plan.rootfs + _CONTAINER)
        os.close(container)
        os.symlink(f"{_CONTAINER}/etc", f"{plan.rootfs}/etc")  # the engine resolves names for sockets
        _seal(plan.rootfs)

    def prepare(self, plan: Plan, preopens: Sequence[Preopen]) -> None:
        """See ``wasm/engine.py``."""
        options = [f"--dir={each.name}:{each.path}{'' if each.writable else ':readonly'}" for each in preopens]
        options += [f"--env={name}={value}" for name, value in plan.env]
        if plan.memory_limit is not None:
            options.append(f"--memory-page-limit={max(1, plan.memory_limit // PAGE)}")
        options += [f"--forbidden-plugin={name}" for name in self._forbidden]
        self.argv = [self._start, *self._engine.argv[1:], *options, "--", self._module, *plan.argv[1:]]

    def run(self) -> int:
        """Become the program."""
        for fd in range(3):
            os.set_inheritable(fd, True)
        env = {"WASMEDGE_PLUGIN_PATH": "/plugins"} if self._plugins else {}
        try:
            os.execve(self.argv[0], self.argv, env)  # noqa: S606 - this process becomes it
        except OSError as exc:
            complain(f"cannot execute {self.argv[0]}: {exc.strerror}")
        return EXIT_NOT_STARTED


def _place(source: str, target: str) -> None:
    """Bind a file, or copy one that is on no mount (the compiled module where the cache cannot be used)."""
    os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
    with open(target, "wb") as file:
        os.fchmod(file.fileno(), 0o644)
        try:
            native.bind(source, target)
        except OSError:
            with open(source, "rb") as given:
                while data := given.read(1 << 20):
                    file.write(data)


def _seal(root: str) -> None:
    tree = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    sys.set_mount_attributes(tree, sys.MOUNT_ATTR_RDONLY | sys.MOUNT_ATTR_NOSUID, 0, 0, recursive=False)
    os.close(tree)


def _compile(engine: Native, root: str, module_fd: int, compiled_fd: int) -> dict[str, Any]:
    """The compiler's process: see ``compiling.Compiler``. Its root holds the engine's files and a folder to work in."""
    try:
        sys.unshare(sys.CLONE_NEWNS)
        native.furnish(engine, root)
        sys.mount("work", _made(f"{root}{_WORK}"), "tmpfs", 0, "mode=700,uid=65534,gid=65534")
        _copy(module_fd, f"{root}{_WORK}/module.wasm")
        rootfs.enter(root)
        end, words = _run_compiler(engine)
        if end != Exit(0):
            return {"words": words or f"the compiler {end.words}"}
        with open(f"{_WORK}/out.so", "rb") as file:
            while data := memoryview(file.read(1 << 20)):
                while data:
                    data = data[os.write(compiled_fd, data) :]
        os.fchmod(compiled_fd, 0o644)  # read by the container's user, in a directory that only root can enter
    except OSError as exc:
        return {"errno": exc.errno}
    return {}


def _made(path: str) -> str:
    os.makedirs(path)
    return path


def _copy(fd: int, path: str) -> None:
    offset = 0
    with open(path, "wb") as file:
        os.fchmod(file.fileno(), 0o644)
        while data := os.pread(fd, 1 << 20, offset):
            file.write(data)
            offset += len(data)


def _run_compiler(engine: Native) -> tuple[Exit, str]:
    """Its end, and the errors that it has printed as one line."""
    argv = [*engine.argv, "compile", f"{_WORK}/module.wasm", f"{_WORK}/out.so"]
    output = os.memfd_create("words", os.MFD_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):  # nothing may return into the caller's frames
            privileges.become_nobody()
            seccomp.install(executes=True)
            for fd in (1, 2):
                os.dup2(output, fd)
            os.execve(argv[0], argv, {"TMPDIR": _WORK})  # noqa: S606 - behind the filter
        os._exit(EXIT_NOT_STARTED)
    end = Exit.from_wait_status(os.waitpid(pid, 0)[1])
    text = os.pread(output, 65536, 0).decode(errors="replace")
    os.close(output)
    return end, " ".join(_ERROR_LINE.findall(text))[:2048]
