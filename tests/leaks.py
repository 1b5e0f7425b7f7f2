"""What a test may not leave behind: descriptors, threads, processes, and what the whole machine sees.

A :class:`Snapshot` is taken before and after; :func:`leaked` says in words what is there too much. It compares what
things are, not which ones: a worker that a test killed and that was replaced is no leak, one more of them is.
Reads only /proc and /sys, so that it costs well under a millisecond where nothing of the machine is looked at.
"""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

PATIENCE_SECONDS = 3.0
_LOOK_AGAIN_SECONDS = 0.01
_PR_SET_CHILD_SUBREAPER = 36

# Threads that a library starts once and keeps for the process.
_KEPT_THREADS = ("grpc", "event_engine", "timer_manager", "resolver-execut", "default-executo", "ZMQbg/Reaper")
# A whole stack that somebody runs beside the tests. Tests that start one check it by name (tests/e2e/leftovers.py).
_OTHERS = (
    "/containerd",
    "/k8s.io",
    "/kuasar-dev",
    "/kuasar-e",
    "/.kuasar/",
    "/docker",
    "/kubepods",
    "/system.slice",
    "/user.slice",
)

# Parents that the product and the agent's tests make once and keep, empty, for all sandboxes.
_KEPT_CGROUPS = re.compile(r"/kuasar(-agent-test-\d+)?$")


@dataclass
class Snapshot:
    """What there is of each kind, counted by what it is."""

    descriptors: Counter[str] = field(default_factory=Counter)
    threads: Counter[str] = field(default_factory=Counter)
    processes: Counter[str] = field(default_factory=Counter)
    mounts: Counter[str] = field(default_factory=Counter)
    cgroups: Counter[str] = field(default_factory=Counter)
    namespaces: Counter[str] = field(default_factory=Counter)

    @classmethod
    def take(cls, machine: bool, sockets: bool = True) -> Snapshot:
        """Of this process and its descendants; with ``machine`` also of what is not ours alone. Without ``sockets``
        those are not counted: gRPC's channels of a whole session make and close their connections when they like."""
        descriptors = (name for name in _descriptors() if sockets or name != "socket")
        own = cls(Counter(descriptors), Counter(_threads()), Counter(_processes()))
        if machine:
            own.mounts, own.cgroups = Counter(_mounts()), Counter(_cgroups())
            own.namespaces = Counter(_named_namespaces())
        return own

    def more_than(self, before: Snapshot) -> list[str]:
        """What is here and was not there, in words."""
        found = []
        for kind in ("descriptors", "threads", "processes", "mounts", "cgroups", "namespaces"):
            now, then = getattr(self, kind), getattr(before, kind)
            if kind in ("descriptors", "threads") and now.total() <= then.total():
                continue  # one was replaced by another
            found += [f"{kind}: {what}" + (f" (x{count})" if count > 1 else "") for what, count in (now - then).items()]
        return sorted(found)


def leaked(before: Snapshot, machine: bool, settle: Callable[[], object], sockets: bool = True) -> list[str]:
    """What is there too much, once everything that ends by itself has had the time to. ``settle`` is called if
    there is something at first (to collect garbage that holds descriptors)."""
    until = time.monotonic() + PATIENCE_SECONDS
    found = Snapshot.take(machine, sockets).more_than(before)
    if found:
        settle()
    while found and time.monotonic() < until:
        time.sleep(_LOOK_AGAIN_SECONDS)  # the kernel tells nobody when the last mount or cgroup is gone
        found = Snapshot.take(machine, sockets).more_than(before)
    return found


def adopt_orphans(wanted: bool) -> None:
    """Become (or cease to be) the parent of orphaned descendants, so that a daemon that was left behind is seen."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def _descriptors() -> Iterator[str]:
    directory = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in os.listdir(directory):
            if int(name) == directory:
                continue
            with suppress(FileNotFoundError):
                yield os.readlink(name, dir_fd=directory).partition(":[")[0]
    finally:
        os.close(directory)


def _threads() -> Iterator[str]:
    for name in os.listdir("/proc/self/task"):
        with suppress(FileNotFoundError, ProcessLookupError):
            title = _read(f"/proc/self/task/{name}/comm").strip()
            if not title.startswith(_KEPT_THREADS):
                yield title


def _processes() -> Iterator[str]:
    """Command lines of all descendants that run. Orphans that have ended are reaped: they are ours only by adoption."""
    own = os.getpid()
    for pid in _children(own):
        if _has_ended(pid):
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            continue
        yield from _with_descendants(pid)


def _with_descendants(pid: int) -> Iterator[str]:
    with suppress(FileNotFoundError, ProcessLookupError):
        command = _read(f"/proc/{pid}/cmdline").replace("\0", " ").strip() or _read(f"/proc/{pid}/comm").strip()
        yield command
        for child in _children(pid):
            if not _has_ended(child):
                yield from _with_descendants(child)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, _read(f"/proc/{pid}/task/{task}/children").split())
    return found


def _has_ended(pid: int) -> bool:
    try:
        return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _mounts() -> Iterator[str]:
    for line in _read("/proc/self/mountinfo").splitlines():
        path = line.split()[4]
        if not _is_of_others(path):
            yield path


def _cgroups() -> Iterator[str]:
    for directory, _, _ in os.walk("/sys/fs/cgroup"):
        if not _is_of_others(directory) and not _KEPT_CGROUPS.search(directory):
            yield directory


def _named_namespaces() -> Iterator[str]:
    with suppress(FileNotFoundError):
        yield from os.listdir("/run/netns")


def _is_of_others(path: str) -> bool:
    return any(mark in path for mark in _OTHERS)


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
