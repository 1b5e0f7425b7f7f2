"""What an OCI specification asks of a WebAssembly container, as frozen types. Pure: no I/O.

:func:`plan` is total: whatever is wrong in the specification becomes :class:`InvalidArgument` naming the field. What
WASI has no use for is left out knowingly: kernel file systems (a window into the host that no module needs), devices
beyond the five harmless ones, seccomp and AppArmor profiles (written for programs that make system calls of their own),
hooks, and every capability that does not concern files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kuasar.agent.drivers.wasm.fields import (
    get_boolean,
    get_integer,
    get_list,
    get_map,
    get_string,
    get_strings,
    require,
    require_integer,
)
from kuasar.core.errors import InvalidArgument

IGNORED_FILE_SYSTEMS = frozenset({"proc", "sysfs", "cgroup", "cgroup2", "mqueue", "devpts"})

FILE_CAPABILITIES: Mapping[str, int] = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
}
"""The capabilities a module can feel: they decide which files its user may touch. All others are dropped."""

_RLIMITS = frozenset(
    (
        *("RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE"),
        *("RLIMIT_NICE", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_RSS", "RLIMIT_RTPRIO", "RLIMIT_RTTIME"),
        *("RLIMIT_SIGPENDING", "RLIMIT_STACK"),
    )
)
_MAX_ID = 2**32 - 2


@dataclass(frozen=True)
class Needs:
    """What an engine needs beside the module."""

    threads: int = 8
    """An engine reads files and standard input in threads (five were seen); without them a module hangs, not fails."""
    memory_bytes: int = 4 * 1024 * 1024
    """What the process needs of its cgroup beside the module's memory: the interpreter's and the engine's own pages."""


@dataclass(frozen=True)
class Rlimit:
    """One resource limit; -1 is no limit."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True)
class Mount:
    """One mount below the root file system."""

    destination: str
    """Absolute and normalised."""
    type: str
    """``bind`` or a file system type."""
    source: str
    options: tuple[str, ...]
    field: str
    """Where it stands in the specification, for errors."""

    @property
    def read_only(self) -> bool:
        """Whether writes through it must fail (the last of contradicting options counts, as in mount(8))."""
        said = [option for option in self.options if option in ("ro", "rro", "rw")]
        return bool(said) and said[-1] != "rw"


@dataclass(frozen=True)
class Preopen:
    """A directory that a module finds open: where it is, what the module calls it, whether it may write below it."""

    path: str
    name: str
    writable: bool


@dataclass(frozen=True)
class Plan:
    """One WebAssembly container."""

    rootfs: str
    module: str
    """The module's path as the specification spells it: absolute, or relative to ``cwd`` or a directory of PATH."""
    argv: tuple[str, ...]
    """The arguments the module sees; the first one is its own path."""
    env: tuple[tuple[str, str], ...]
    cwd: str
    read_only: bool
    mounts: tuple[Mount, ...]
    uid: int
    gid: int
    groups: tuple[int, ...]
    umask: int | None
    capabilities: int
    rlimits: tuple[Rlimit, ...]
    oom_score_adj: int | None
    memory_limit: int | None
    """Bytes the module's memory may grow to; None: what the engine allows (4 GiB)."""
    cgroup: str
    resources: dict[str, Any]
    annotations: Mapping[str, str]

    def module_candidates(self) -> list[str]:
        """Absolute paths, below the root file system, at which the module may be, best first."""
        if os.path.isabs(self.module):
            return [self.module]
        found = [os.path.join(self.cwd, self.module)]
        if "/" not in self.module:
            path = dict(self.env).get("PATH", "")
            found += [os.path.join(part, self.module) for part in path.split(":") if os.path.isabs(part)]
        return found


_USUAL_NEEDS = Needs()


def plan(rootfs: str, spec: Mapping[str, Any], needs: Needs = _USUAL_NEEDS) -> Plan:
    """Read ``spec`` for a container whose root file system is mounted at ``rootfs``."""
    process = get_map(spec, "process", "process")
    user = get_map(process, "user", "process.user")
    linux = get_map(spec, "linux", "linux")
    resources = get_map(linux, "resources", "linux.resources")
    memory = get_map(resources, "memory", "linux.resources.memory")
    env = tuple(_variable(text, n) for n, text in enumerate(get_strings(process, "env", "process.env")))
    cwd = _absolute(get_string(process, "cwd", "process.cwd") or "/", "process.cwd")
    uid = get_integer(user, "uid", "process.user.uid", 0, _MAX_ID) or 0
    limit = get_integer(memory, "limit", "linux.resources.memory.limit", -1)
    _check_threads(get_map(resources, "pids", "linux.resources.pids"), needs.threads)
    module, argv = _module_and_arguments(get_strings(process, "args", "process.args"))
    return Plan(
        rootfs=rootfs,
        module=module,
        argv=argv,
        env=env if any(name == "PWD" for name, _ in env) else (*env, ("PWD", cwd)),
        cwd=cwd,
        read_only=get_boolean(get_map(spec, "root", "root"), "readonly", "root.readonly"),
        mounts=_mounts(spec),
        uid=uid,
        gid=get_integer(user, "gid", "process.user.gid", 0, _MAX_ID) or 0,
        groups=_groups(user),
        umask=get_integer(user, "umask", "process.user.umask", 0, 0o777),
        capabilities=_capabilities(process, uid),
        rlimits=_rlimits(process),
        oom_score_adj=get_integer(process, "oomScoreAdj", "process.oomScoreAdj", -1000, 1000),
        memory_limit=module_memory(limit, needs) if limit is not None and limit > 0 else None,
        cgroup=get_string(linux, "cgroupsPath", "linux.cgroupsPath"),
        resources=dict(resources),
        annotations=_annotations(spec),
    )


def preopens(plan: Plan, is_directory: Callable[[str], bool]) -> list[Preopen]:
    """The directories a module gets, in order: "." (unless it is the root), "/", and each mount.

    WASI has no working directory; what a program makes of a relative path depends on its language. Zig takes the first
    open directory, which is therefore the working directory. Go takes PWD, which is always set. C and Rust (wasi-libc)
    start at "/" and prefer the later of equal names, which is why "/" comes after "."; they can go to PWD themselves.

    Where writing is forbidden the kernel says so; WASI's own permission comes on top, except for a directory with
    writable files mounted into it (a read-only root and /dev/termination-log).
    """
    writable = {"/": not plan.read_only}
    writable |= {mount.destination: not mount.read_only for mount in plan.mounts if is_directory(mount.destination)}
    for mount in plan.mounts:
        if mount.destination not in writable and not mount.read_only:
            writable[_nearest(mount.destination, writable)] = True
    found = [Preopen(path, path, allowed) for path, allowed in writable.items()]
    if plan.cwd != "/":
        found.insert(0, Preopen(plan.cwd, ".", writable[_nearest(plan.cwd, writable)]))
    return found


def _nearest(path: str, directories: Mapping[str, bool]) -> str:
    """The longest of ``directories`` that is ``path`` or above it; "/" is among them."""
    return max((known for known in directories if f"{path}/".startswith(f"{known.rstrip('/')}/")), key=len)


def module_memory(limit: int, needs: Needs = _USUAL_NEEDS) -> int:
    """How far a module's memory may grow in a cgroup of ``limit`` bytes.

    Less than the limit itself, so that a module that allocates too much is told so by ``memory.grow`` instead of being
    killed by the kernel for the engine's share.
    """
    return max(limit - needs.memory_bytes, limit // 2)


def _module_and_arguments(args: list[str]) -> tuple[str, tuple[str, ...]]:
    """The module is the first argument, or the first one that ends in .wasm (``["wasmtime", "run", "/app.wasm"]``)."""
    if not args or not args[0]:
        raise InvalidArgument("process.args: empty; its first entry names the module", field="process.args")
    first = next((n for n, arg in enumerate(args) if arg.endswith(".wasm")), 0)
    return args[first], tuple(args[first:])


def _annotations(spec: Mapping[str, Any]) -> dict[str, str]:
    given = get_map(spec, "annotations", "annotations")
    return {key: get_string(given, key, f"annotations.{key}") for key in given}


def _check_threads(pids: Mapping[str, Any], threads: int) -> None:
    field = "linux.resources.pids.limit"
    limit = get_integer(pids, "limit", field, -1)
    if limit is not None and 0 < limit < threads:
        words = f"{field}: {limit} is too small, the engine of a WebAssembly container needs {threads} threads"
        raise InvalidArgument(words, field=field)


def _variable(text: str, number: int) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        field = f"process.env[{number}]"
        raise InvalidArgument(f"{field}: {text!r:.100} is not of the form NAME=value", field=field)
    return name, value


def _capabilities(process: Mapping[str, Any], uid: int) -> int:
    """The mask to keep: what a program executed by that user would have as effective set, as far as WASI can use it."""
    sets = get_map(process, "capabilities", "process.capabilities")
    key = "effective" if uid == 0 else "ambient"  # execve leaves another user with the ambient ones only
    names = get_strings(sets, key, f"process.capabilities.{key}")
    return sum(1 << FILE_CAPABILITIES[name] for name in set(names) if name in FILE_CAPABILITIES)


def _groups(user: Mapping[str, Any]) -> tuple[int, ...]:
    field = "process.user.additionalGids"
    groups = get_list(user, "additionalGids", field)
    return tuple(require_integer(value, f"{field}[{n}]", 0, _MAX_ID) for n, value in enumerate(groups))


def _rlimits(process: Mapping[str, Any]) -> tuple[Rlimit, ...]:
    found = []
    for n, entry in enumerate(get_list(process, "rlimits", "process.rlimits")):
        field = f"process.rlimits[{n}]"
        entry = require(entry, dict, field, "a map")
        name = get_string(entry, "type", f"{field}.type")
        if name not in _RLIMITS:
            raise InvalidArgument(f"{field}.type: {name!r:.100} is no resource limit of Linux", field=f"{field}.type")
        soft = get_integer(entry, "soft", f"{field}.soft", 0, 2**64 - 1) or 0
        hard = get_integer(entry, "hard", f"{field}.hard", 0, 2**64 - 1) or 0
        if soft > hard:
            raise InvalidArgument(f"{field}: soft limit {soft} is above hard limit {hard}", field=field)
        found.append(Rlimit(name, _unlimited(soft), _unlimited(hard)))
    return tuple(found)


def _unlimited(value: int) -> int:
    return -1 if value >= 2**63 - 1 else value


def _mounts(spec: Mapping[str, Any]) -> tuple[Mount, ...]:
    found = []
    for n, entry in enumerate(get_list(spec, "mounts", "mounts")):
        field = f"mounts[{n}]"
        entry = require(entry, dict, field, "a map")
        options = tuple(get_strings(entry, "options", f"{field}.options"))
        bind = "bind" in options or "rbind" in options
        kind = "bind" if bind else get_string(entry, "type", f"{field}.type")
        if kind in IGNORED_FILE_SYSTEMS:
            continue
        destination = _absolute(get_string(entry, "destination", f"{field}.destination"), f"{field}.destination")
        if destination == "/":
            raise InvalidArgument(f"{field}.destination: the root itself cannot be mounted over", field=field)
        source = get_string(entry, "source", f"{field}.source")
        if bind and not os.path.isabs(source):
            raise InvalidArgument(f"{field}.source: {source!r:.200} is not an absolute path", field=f"{field}.source")
        found.append(Mount(destination, kind, source, options, field))
    return tuple(found)


def _absolute(path: str, field: str) -> str:
    if not os.path.isabs(path):
        raise InvalidArgument(f"{field}: {path!r:.200} is not an absolute path", field=field)
    return "/" + os.path.normpath(path).lstrip("/")  # normpath keeps a leading double slash
