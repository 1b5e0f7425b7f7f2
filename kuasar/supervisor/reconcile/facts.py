"""Looks at what there is: directories, supervisord, processes, cgroups, mounts, keeper, templates. Changes nothing."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

from kuasar.core import cgroup, log
from kuasar.core.config import Config
from kuasar.core.errors import InvalidArgument, KuasarError, Unavailable
from kuasar.core.ids import require_id
from kuasar.core.process import start_time
from kuasar.core.trees import mounts_below
from kuasar.supervisor.client import SupervisorClient
from kuasar.supervisor.keeper_client import Keeper
from kuasar.supervisor.reconcile.plan import Directory, Facts, Process
from kuasar.supervisor.records import RECORD

_DAMAGED = ".damaged"
_MACHINE_LOGS = (".agent.log", ".console.log")
_HALF_MADE = re.compile(r"(.+)\.new-\d+")
_MOST_TITLE_CHARS = 100


def look(config: Config, supervisord: SupervisorClient, keeper: Keeper) -> Facts:
    """All facts of one state directory. Records are looked for first and last: a sandbox that is being made or removed
    meanwhile is no orphan. Processes and logs count only for ids that have a directory here: another stack may share
    the log directory, and the directory of a sandbox is the last thing of it to go."""
    before = _directories(config)
    facts = Facts(
        directories=before,
        strangers=tuple(name for name in _listed(config.sandboxes_dir) if not _is_id(name)),
        workers=_workers(supervisord),
        processes=tuple(process for process in _processes(config) if process.sandbox in before),
        mounts=tuple(_mounts(config)),
        kept=tuple(_kept(keeper)),
        logs=tuple(entry for entry in _logs(config) if entry[0] in before),
        lost=frozenset(name.removesuffix(".msgpack") for name in _listed(damaged_dir(config))),
        half_made=tuple(_half_made(config)),
    )
    facts = replace(facts, directories=_merged(before, _directories(config)))
    # Looking through all cgroups of a node takes a while; mostly there is nobody to look for.
    orphans = facts.orphans
    if not orphans:
        return facts
    found = {*_cgroups(orphans), *_cgroups_of_containers([each for each in facts.processes if each.sandbox in orphans])}
    return replace(facts, cgroups=tuple(sorted(found)))


def damaged_dir(config: Config) -> str:
    """Where records that cannot be read are kept."""
    return f"{config.state_dir}/damaged"


def _listed(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_id(name: str) -> bool:
    try:
        require_id(name, "sandbox")
    except InvalidArgument:
        return False
    return True


def _directories(config: Config) -> dict[str, Directory]:
    found = {}
    for name in _listed(config.sandboxes_dir):
        path = f"{config.sandboxes_dir}/{name}"
        if _is_id(name) and os.path.isdir(path):
            damaged = tuple(f"{path}/{each}" for each in _listed(path) if each.endswith(_DAMAGED))
            found[name] = Directory(os.path.isfile(f"{path}/{RECORD}"), damaged)
    return found


def _merged(before: dict[str, Directory], after: dict[str, Directory]) -> dict[str, Directory]:
    """Recorded counts if it was so at one time."""
    return {
        sandbox: replace(now, recorded=now.recorded or (sandbox in before and before[sandbox].recorded))
        for sandbox, now in after.items()
    }


def _workers(supervisord: SupervisorClient) -> frozenset[str] | None:
    try:
        return frozenset(state["id"] for state in supervisord.states())
    except KuasarError as exc:
        log.warning("supervisord does not say which workers there are", error=exc)
        return None


def _processes(config: Config) -> Iterator[Process]:
    """By the log that they write to: agent, VMM and virtiofsd of a sandbox all have it as their standard output."""
    logs = os.path.realpath(config.sandbox_log_dir)
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with suppress(OSError):  # it ends while we look, or is a kernel thread
            output = os.readlink(f"/proc/{entry}/fd/1").removesuffix(" (deleted)")
            directory, _, name = output.rpartition("/")
            if directory != logs or not name.endswith(_MACHINE_LOGS[0]):
                continue
            sandbox, started = name.removesuffix(_MACHINE_LOGS[0]), start_time(int(entry))
            if started is not None and _is_id(sandbox):
                yield Process(int(entry), started, sandbox, _title(entry))


def _title(pid: str) -> str:
    with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
        return file.read().replace("\0", " ").strip()[:_MOST_TITLE_CHARS]


def _cgroups(orphans: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Those named after a sandbox: ``kuasar-<id>``, ``<id>-<container>`` where CRI gave none, and the marked ones."""
    found: set[tuple[str, str]] = set()
    for root in cgroup.current().roots():
        for directory, folders, _ in os.walk(root):
            for name in list(folders):
                sandbox = _owner_of_cgroup(directory.removeprefix(root), name, orphans)
                if not sandbox and (owner := cgroup.marked(f"{directory}/{name}")) in orphans:
                    sandbox = owner
                if sandbox:
                    found.add((sandbox, f"{directory.removeprefix(root)}/{name}"))
                    folders.remove(name)
    yield from sorted(found)


def _owner_of_cgroup(parent: str, name: str, orphans: Iterable[str]) -> str:
    if name.removeprefix("kuasar-") in orphans and name.startswith("kuasar-"):
        return name.removeprefix("kuasar-")
    if parent == "/kuasar":
        return next((each for each in orphans if name.startswith(f"{each}-")), "")
    return ""


def _cgroups_of_containers(processes: Iterable[Process]) -> Iterator[tuple[str, str]]:
    """CRI names a container's cgroup, so that its name says nothing; but all in it descend from the sandbox's agent."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError, ValueError):
                children.setdefault(_parent_of(entry), []).append(int(entry))
    for process in processes:
        family = [process.pid]
        for pid in family:  # grows while it is walked
            family += children.get(pid, [])
        for path in {path for pid in family[1:] if (path := _cgroup_of(pid))}:
            if set(cgroup.procs(path)) <= set(family[1:]):
                yield process.sandbox, path


def _parent_of(pid: str) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])


def _cgroup_of(pid: int) -> str:
    """The path in the hierarchy that counts; empty for the root, or when the process is gone."""
    paths: dict[str, str] = {}
    with suppress(OSError), open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            paths |= dict.fromkeys(controllers.split(","), path)
    path = next((paths[name] for name in ("pids", "freezer", "memory", "") if name in paths), "")
    return "" if path == "/" else path


def _mounts(config: Config) -> Iterator[tuple[str, str]]:
    top = os.path.realpath(config.sandboxes_dir)
    for path in mounts_below(top):
        sandbox = path.removeprefix(f"{top}/").partition("/")[0]
        if path != top and _is_id(sandbox):
            yield sandbox, path


def _kept(keeper: Keeper) -> Iterator[tuple[str, str]]:
    try:
        names = keeper.list("sandbox/")
    except Unavailable as exc:
        log.info("no keeper, its entries are not looked at", error=exc)
        return
    for name in names:
        sandbox = name.split("/")[1]
        if _is_id(sandbox):
            yield sandbox, name


def _logs(config: Config) -> Iterator[tuple[str, str]]:
    for name in _listed(config.sandbox_log_dir):
        for ending in _MACHINE_LOGS:
            if name.endswith(ending) and _is_id(name.removesuffix(ending)):
                yield name.removesuffix(ending), f"{config.sandbox_log_dir}/{name}"


def _half_made(config: Config) -> Iterator[str]:
    """A maker holds the lock of its template's key for as long as it lives."""
    for engine in config.engines:
        directory = f"{config.engine(engine).cache_dir}/templates"
        for name in _listed(directory):
            match = _HALF_MADE.fullmatch(name)
            if match and not _is_locked(f"{directory}/{match[1]}.lock"):
                yield f"{directory}/{name}"


def _is_locked(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
