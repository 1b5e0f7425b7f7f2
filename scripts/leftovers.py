"""What a stack has left on the machine: found by its names, told, and removed.

Everything of a stack can be attributed: its sockets and mounts lie below its directories, its cgroups below a parent of
its name or are named after its pods, its interfaces hang on its bridge. ``Before`` remembers what the machine was like
before the stack, for the few things that containerd and CNI share with the rest of it.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass

from scripts.layout import CONTAINERD_BIN, Layout

_IP_FORWARD = "/proc/sys/net/ipv4/ip_forward"
_CGROUP_PARENTS = ("k8s.io", "kuasar")
_SHARED = (
    "/run/containerd/s",
    "/run/containerd/runc/k8s.io",
    "/run/containerd/runc",
    "/run/containerd",
    "/var/lib/cni/results",
    "/var/lib/cni",
)
_MNT_DETACH = 2


@dataclass(frozen=True)
class Leftover:
    """One thing that should not be there any more."""

    kind: str
    """process, mount, link or cgroup."""
    name: str
    """The pid, or the path."""
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class Before:
    """What the machine was like before the stack: to be put back."""

    ip_forward: str
    absent: list[str]
    """Shared directories that were not there."""

    @classmethod
    def note(cls, path: str) -> None:
        """Write the present down at ``path``, unless an earlier start of the same stack did."""
        if os.path.exists(path):
            return
        shared = (*_SHARED, *(f"{root}/{name}" for root in hierarchies() for name in _CGROUP_PARENTS))
        before = cls(_read(_IP_FORWARD).strip(), [name for name in shared if not os.path.exists(name)])
        with open(path, "w", encoding="utf-8") as file:
            json.dump(asdict(before), file)

    @classmethod
    def restore(cls, path: str) -> None:
        """Put back what ``path`` tells; directories that others use by now stay."""
        with suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
            before = cls(**json.load(file))
            for name in before.absent:
                with suppress(OSError):  # not empty, or never made
                    os.rmdir(name)
            if _read(_IP_FORWARD).strip() != before.ip_forward:
                with open(_IP_FORWARD, "w", encoding="utf-8") as switch:
                    switch.write(before.ip_forward)


def find(layout: Layout, pods: Collection[str] = ()) -> list[Leftover]:
    """All that is there of the stack, once it should be gone; ``pods`` are ids of pods and containers it had."""
    found = [Leftover("process", str(pid), title) for pid, title in processes(layout).items()]
    found += [Leftover("mount", path) for path in mounts(layout)]
    bridge = f"/sys/class/net/{layout.bridge}/brif"
    found += [Leftover("link", name, f"on {layout.bridge}") for name in listed(bridge)]
    return found + [Leftover("cgroup", path) for path in cgroups(layout, pods)]


def remove(layout: Layout, leftovers: Iterable[Leftover]) -> None:
    """Remove ``leftovers``, and the network of the stack."""
    by_kind: dict[str, list[str]] = {}
    for leftover in leftovers:
        by_kind.setdefault(leftover.kind, []).append(leftover.name)
    end_processes([int(pid) for pid in by_kind.get("process", ())], signal.SIGKILL, seconds=10)
    libc = ctypes.CDLL(None, use_errno=True)
    for path in by_kind.get("mount", ()):
        libc.umount2(os.fsencode(path), _MNT_DETACH)
    for name in (*by_kind.get("link", ()), layout.bridge):
        if os.path.exists(f"/sys/class/net/{name}"):
            subprocess.run(["ip", "link", "delete", name], check=False, stdin=subprocess.DEVNULL, capture_output=True)
    for path in by_kind.get("cgroup", ()):
        for root in hierarchies():
            with suppress(OSError):
                os.rmdir(f"{root}{path}")
    for directory in ("/var/lib/cni/results", "/var/lib/cni/cache"):
        for name in listed(directory):
            if name.startswith(f"{layout.network}-"):
                os.unlink(f"{directory}/{name}")


def processes(layout: Layout) -> dict[int, str]:
    """Processes of the stack: pid and command line.

    A stranger that merely reads a log of ours is not one: a process counts if it runs one of our programs and names our
    directory, or lives in other namespaces than we and holds something of ours open.
    """
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with suppress(OSError):  # it ends while we look, or is a kernel thread
                title = _read(f"/proc/{entry}/cmdline").replace("\0", " ").strip()
                if _is_ours(layout, entry, title):
                    found[int(entry)] = title[:200]
    return found


def _is_ours(layout: Layout, pid: str, title: str) -> bool:
    is_machine = os.path.basename(title.partition(" ")[0]).startswith("qemu-system-")
    if (
        title.startswith("kuasar-")
        or is_machine
        or os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
    ):
        held = (os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
        return any(_below(path, layout) for path in held)
    program = os.readlink(f"/proc/{pid}/exe")
    if f"{layout.run}/" not in title + " ":
        return False
    return program.startswith(CONTAINERD_BIN) or " -m kuasar." in title or " -m supervisor.supervisord" in title


def end_processes(pids: Iterable[int], number: int, seconds: float) -> None:
    """Send a signal (0: none) and wait until they have ended, at most ``seconds`` for all."""
    deadline = time.monotonic() + seconds
    waiting = {}
    for pid in pids:
        with suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            waiting[fd] = pid
            if number:
                signal.pidfd_send_signal(fd, number)
    poll = select.poll()
    for fd in waiting:
        poll.register(fd, select.POLLIN)
    while waiting and (left := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            poll.unregister(fd)
            del waiting[fd]
            os.close(fd)
    for fd in waiting:
        os.close(fd)


def mounts(layout: Layout) -> list[str]:
    """Mount points below the directories of the stack, the innermost first, but for those that containerd keeps."""
    return [point for point in _mount_points() if _below(point, layout) and not point.startswith(_layers(layout))]


def unmount_layers(layout: Layout) -> None:
    """Of images: containerd's erofs snapshotter mounts them for as long as it has the image, and leaves them mounted
    when it ends."""
    libc = ctypes.CDLL(None)
    for point in _mount_points():
        if point.startswith(_layers(layout)):
            libc.umount2(os.fsencode(point), _MNT_DETACH)


def _layers(layout: Layout) -> str:
    return f"{layout.containerd_root}/io.containerd.snapshotter.v1.erofs/"


def _mount_points() -> list[str]:
    """The innermost first."""
    lines = _read("/proc/self/mountinfo").splitlines()
    return [line.split()[4].replace("\\040", " ") for line in reversed(lines)]


def cgroups(layout: Layout, pods: Collection[str] = ()) -> list[str]:
    """Paths of cgroups of the stack in any hierarchy, the innermost first."""
    found: set[str] = set()
    for root in hierarchies():
        tops = [layout.cgroup_parent]
        for parent in _CGROUP_PARENTS:
            names = listed(f"{root}/{parent}")
            tops += [f"/{parent}/{name}" for name in names if name.removeprefix("kuasar-") in pods]
        for top in tops:
            found.update(directory.removeprefix(root) for directory, _, _ in os.walk(f"{root}{top}"))
    return sorted(found, reverse=True)


def hierarchies() -> list[str]:
    """Mount points of all cgroup hierarchies: one on a unified host, several on others."""
    lines = [line.split() for line in _read("/proc/self/mounts").splitlines()]
    return [fields[1] for fields in lines if fields[2] in ("cgroup", "cgroup2")]


def _below(path: str, layout: Layout) -> bool:
    return path.startswith((f"{layout.run}/", f"{layout.data}/"))


def listed(directory: str) -> list[str]:
    """The names in a directory; none if there is no such directory."""
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
