"""The first process of a guest, from its clone to the program that the guest's kernel would start.

Everything here runs in the clone; what fails is written to a pipe, which the program's execution closes.
"""

from __future__ import annotations

import ctypes
import json
import os
import stat
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from kuasar.agent import kernel
from kuasar.supervisor.clone import clone, set_parent_death_signal

HARDWARE = "/run/hardware"
"""Where the guest's hardware is described, as the guest sees it."""
_NEW_NAMESPACES = 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000  # mnt, uts, ipc, pid, net
_NEW_CGROUP_NAMESPACE = 0x02000000
_PLAIN = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
_DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "kmsg": (1, 11),
    "tty": (5, 0),
    "fuse": (10, 229),
    "net/tun": (10, 200),
}
_PYTHON = "/usr/bin/python3.11"
_PROGRAM = f"exec(open('{HARDWARE}/inside.py').read())"
_EXIT_FAILED = 70


@dataclass(frozen=True)
class Plan:
    """What the guest is made from."""

    scratch: str
    """An empty directory of the host, on which the guest's root is put together where only the guest sees it."""
    root_device: str
    command_line: str
    listener: int
    """The socket behind its vsock port."""
    console: int
    cgroups: Sequence[tuple[str, str, str]]
    vcpus: int
    memory: int
    clock_offset_ns: int


def start(plan: Plan, place: Sequence[int]) -> tuple[int, int]:
    """Clone the first process; gives its pid and a pipe that says why it failed, or ends. ``place`` are both ends of a
    pipe: it goes on when a byte comes, so that it can be put into its cgroup first."""
    reader, writer = os.pipe()
    pid = clone(_NEW_NAMESPACES)
    if pid == 0:
        _live(plan, place[0], writer)
    os.close(writer)
    return pid, reader


def _live(plan: Plan, go: int, complaints: int) -> NoReturn:
    try:
        if os.read(go, 1):
            kernel.unshare(_NEW_CGROUP_NAMESPACE)
            _make_root(plan)
            _become_init(plan)
    except BaseException as exc:
        os.write(complaints, f"{type(exc).__name__}: {exc}".encode())
    os._exit(_EXIT_FAILED)


def _make_root(plan: Plan) -> None:
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("guest", plan.scratch, "tmpfs", 0, "mode=0755")
    root = f"{plan.scratch}/root"
    os.mkdir(root)
    words = dict(word.partition("=")[::2] for word in plan.command_line.split())
    kernel.mount(plan.root_device, root, words.get("rootfstype", "erofs"), kernel.MS_RDONLY)
    kernel.mount("proc", f"{root}/proc", "proc", _PLAIN)
    kernel.mount("sysfs", f"{root}/sys", "sysfs", _PLAIN | kernel.MS_RDONLY)
    _mount_cgroups(plan, f"{root}/sys/fs/cgroup")
    _make_devices(f"{root}/dev")
    kernel.mount("run", f"{root}/run", "tmpfs", kernel.MS_NOSUID, "mode=0755")
    _describe_hardware(plan, root)
    os.chdir(root)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.pivot_root(b".", b"."):
        raise OSError(ctypes.get_errno(), "pivot_root")
    kernel.umount(".", kernel.MNT_DETACH)


def _mount_cgroups(plan: Plan, top: str) -> None:
    if any(name for name, _, _ in plan.cgroups):
        kernel.mount("cgroup", top, "tmpfs", _PLAIN, "mode=0755")
    for name, kind, options in plan.cgroups:
        directory = f"{top}/{name}" if name else top
        os.makedirs(directory, exist_ok=True)
        kernel.mount("cgroup", directory, kind, _PLAIN, options)


def _make_devices(top: str) -> None:
    kernel.mount("devtmpfs", top, "tmpfs", kernel.MS_NOSUID | kernel.MS_NOEXEC, "mode=0755")
    for name, (major, minor) in _DEVICES.items():
        path = Path(top, name)
        path.parent.mkdir(exist_ok=True)
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(major, minor))
        os.chmod(path, 0o666)
    os.symlink("pts/ptmx", f"{top}/ptmx")


def _describe_hardware(plan: Plan, root: str) -> None:
    """Files that the guest's programs would read the same things from."""
    directory = Path(root + HARDWARE)
    for name in ("disks", "shares"):
        (directory / name).mkdir(parents=True)
    facts = {"listener": plan.listener, "clock_offset_ns": plan.clock_offset_ns}
    (directory / "boot.json").write_text(json.dumps(facts))
    (directory / "size.json").write_text(json.dumps([plan.vcpus, plan.memory]))
    (directory / "clock").write_text(str(plan.clock_offset_ns))
    (directory / "inside.py").write_bytes(Path(__file__).with_name("inside.py").read_bytes())
    (directory / "cmdline").write_text(f"{plan.command_line}\n")
    (directory / "boot_id").write_text(f"{uuid.uuid4()}\n")
    for name, path in (("cmdline", "/proc/cmdline"), ("boot_id", "/proc/sys/kernel/random/boot_id")):
        kernel.mount(str(directory / name), root + path, "", kernel.MS_BIND)


def _become_init(plan: Plan) -> None:
    os.setsid()
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    for number in (1, 2):
        os.dup2(plan.console, number)
    os.set_inheritable(plan.listener, True)
    set_parent_death_signal(os.getppid())
    environment = {"HOME": "/", "TERM": "linux"}
    os.execve(_PYTHON, [_PYTHON, "-I", "-S", "-B", "-X", "utf8", "-c", _PROGRAM], environment)
