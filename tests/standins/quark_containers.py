"""The containers of the stand-in for Quark: its root, their specifications, their processes.

The mounts are those of ``sandbox_process.rs``: what is mounted in the caller's namespace later is seen only if the
caller has made its directory a shared mount.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import stat
import struct
from dataclasses import dataclass
from typing import Any

CLONE_NEWNS, CLONE_NEWPID = 0x00020000, 0x20000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 0x1, 0x2, 0x4, 0x8, 0x20, 0x1000
MS_REC, MS_SLAVE = 0x4000, 0x80000
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _MNT_DETACH = 24, 38, 2
_NAMES = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ
"""
_CAPABILITIES = _NAMES.split()
_SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")
_FLAGS = {"ro": MS_RDONLY, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC}
_WORDS = {"rw", "suid", "dev", "exec", "relatime", "strictatime", "noatime", "defaults", "rprivate", "private"}
_KINDS = {"proc", "sysfs", "tmpfs", "devpts", "mqueue"}
_DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
with open("/proc/sys/kernel/cap_last_cap", "rb") as _file:
    _LAST_CAPABILITY = int(_file.read())
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: Any) -> None:
    if getattr(_libc, name)(*args) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    _call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode() or None)


# -- specifications --------------------------------------------------------------------------------------------------


def load_spec(path: str) -> dict[str, Any]:
    """A specification of which every word is known, as the source's reader has it. Raises ``ValueError``."""
    with open(path, encoding="utf-8") as file:
        spec: dict[str, Any] = json.load(file)
    check_process(spec["process"])
    if not isinstance(spec["linux"], dict):
        raise ValueError("linux: no object")
    for each in spec["linux"].get("namespaces", []):
        if each["type"] not in ("mount", "pid", "ipc", "uts", "network", "user", "cgroup"):
            raise ValueError(f"unknown variant `{each['type']}`")
    for each in spec.get("mounts", []):
        if not each["destination"].startswith("/") or ".." in each["destination"]:
            raise ValueError(f"invalid mount destination: {each['destination']}")
        if each["type"] not in _KINDS:
            raise ValueError(f"a mount of type {each['type']} cannot be seen from here")
        _text_list(each.get("options", []), "options")
    return spec


def check_process(process: dict[str, Any]) -> dict[str, Any]:
    """A process of which every word is known. Raises ``ValueError``."""
    _text_list(process["args"], "args")
    _text_list(process.get("env", []), "env")
    if process.get("terminal"):
        raise ValueError("the stand-in has no terminals")
    for kind, names in process.get("capabilities", {}).items():
        if kind not in _SETS:
            raise ValueError(f"unknown field `{kind}`")
        for name in names:
            if name.removeprefix("CAP_") not in _CAPABILITIES:
                raise ValueError(f"Capability '{name}' is not valid")
    for each in process.get("rlimits", []):
        getattr(resource, each["type"])
    return process


def _text_list(value: Any, where: str) -> None:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{where}: invalid type, expected a sequence of strings")


# -- the sandbox's root ----------------------------------------------------------------------------------------------


def make_root(root: str, sandbox_id: str, spec: dict[str, Any]) -> None:
    """Leave the caller's root for the sandbox's."""
    _mount(root, root, "", MS_BIND | MS_REC)
    os.makedirs(f"{root}/dev/pts", exist_ok=True)
    _mount("devpts", f"{root}/dev/pts", "devpts", 0)
    old = os.umask(0)
    for name, (major, minor) in _DEVICES.items():
        os.mknod(f"{root}/dev/{name}", 0o666 | stat.S_IFCHR, os.makedev(major, minor))
    os.umask(old)
    _call("unshare", CLONE_NEWNS)
    _mount("", "/", "", MS_REC | MS_SLAVE)
    _mount(root, root, "", MS_BIND | MS_REC)
    rootfs = f"{root}/{spec['root']['path']}"
    for path in (f"{root}/{sandbox_id}", f"{root}/tmp"):
        os.makedirs(path, exist_ok=True)
        _mount(rootfs, path, "", MS_BIND | MS_REC)
    os.chdir(root)
    _call("syscall", 155, b".", b".")  # pivot_root
    _call("umount2", b".", _MNT_DETACH)
    os.chdir("/")


def open_streams(paths: tuple[str, str, str]) -> list[int]:
    """The standard descriptors of a process; without blocking, as the source opens the first."""
    found = []
    for path, flags in zip(paths, (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY), strict=True):
        fd = os.open(path or "/dev/null", flags | os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(fd, True)
        found.append(fd)
    return found


# -- processes -------------------------------------------------------------------------------------------------------


@dataclass
class Running:
    """A process of a container: ``number`` is its pid, ``holder`` waits for it."""

    number: int
    holder: int

    def signal(self, number: int) -> None:
        os.kill(self.number, number)

    def wait(self) -> int:
        """Its exit code, 128+n for signal n."""
        _, status = os.waitpid(self.holder, 0)
        return os.WEXITSTATUS(status)


def run_init(rootfs: str, spec: dict[str, Any], fds: list[int]) -> Running:
    """The first process of a container."""

    def enter() -> None:
        _call("unshare", CLONE_NEWNS | CLONE_NEWPID)

    def inside() -> None:
        _mount("", "/", "", MS_REC | MS_SLAVE)  # later mounts are seen, as by quark's own process
        _furnish(rootfs, spec)
        os.chdir(rootfs)
        _call("syscall", 155, b".", b".")
        _call("umount2", b".", _MNT_DETACH)
        os.chdir("/")

    return _run(enter, inside, spec["process"], fds)


def run_in(init: Running, process: dict[str, Any], fds: list[int]) -> Running:
    """Another process beside ``init``."""
    pidfd = os.pidfd_open(init.number)

    def enter() -> None:
        _call("setns", pidfd, CLONE_NEWNS | CLONE_NEWPID)

    try:
        return _run(enter, lambda: None, process, fds)
    finally:
        os.close(pidfd)


def _run(enter: Any, inside: Any, process: dict[str, Any], fds: list[int]) -> Running:
    read_end, write_end = os.pipe()
    failed_read, failed_write = os.pipe2(os.O_CLOEXEC)
    holder = os.fork()
    if holder == 0:
        try:
            enter()
            child = os.fork()
            if child == 0:
                _become(inside, process, fds, failed_write)
            os.close(failed_write)
            os.write(write_end, struct.pack("i", child))
            for fd in fds:
                os.close(fd)
            _, status = os.waitpid(child, 0)
            code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
            os._exit(code)
        finally:
            os._exit(126)
    os.close(write_end)
    os.close(failed_write)
    try:
        running = Running(struct.unpack("i", os.read(read_end, 4))[0], holder)
        words = os.read(failed_read, 4096).decode()
        if words:
            running.wait()
            raise ValueError(words)
        return running
    finally:
        os.close(read_end)
        os.close(failed_read)


def _become(inside: Any, process: dict[str, Any], fds: list[int], failed: int) -> None:
    """The child: never comes back. Why it could not become the program goes to ``failed``."""
    try:
        inside()
        os.dup2(failed, 3, inheritable=False)
        for target, fd in enumerate(fds):
            os.dup2(fd, target)
        os.closerange(4, 4096)
        os.setsid()
        for number in range(1, 65):
            if number not in (9, 19, 32, 33):
                signal.signal(number, signal.SIG_DFL)
        _drop(process)
        os.makedirs(process.get("cwd") or "/", exist_ok=True)
        os.chdir(process.get("cwd") or "/")
        env = dict(each.partition("=")[::2] for each in process.get("env", []))
        os.execvpe(process["args"][0], process["args"], env)
    except Exception as exc:
        os.write(3, f'Common("cannot load executable {process["args"][0]}: {exc}")'.encode())
    finally:
        os._exit(126)


def _furnish(rootfs: str, spec: dict[str, Any]) -> None:
    """What Quark's kernel has of its own in a container."""
    _mount(rootfs, rootfs, "", MS_BIND | MS_REC)
    for each in spec.get("mounts", []):
        options = each.get("options", [])
        flags = sum(_FLAGS[option] for option in set(options) & set(_FLAGS))
        data = ",".join(option for option in options if option not in _FLAGS and option not in _WORDS)
        target = rootfs + each["destination"]
        os.makedirs(target, exist_ok=True)
        _mount(each["type"], target, each["type"], flags & ~MS_RDONLY, data)
        if each["destination"] == "/dev":
            for name, (major, minor) in _DEVICES.items():
                os.mknod(f"{target}/{name}", 0o666 | stat.S_IFCHR, os.makedev(major, minor))
                os.chmod(f"{target}/{name}", 0o666)
            os.mkdir(f"{target}/shm")
            _mount("shm", f"{target}/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777,size=64m")
        if flags & MS_RDONLY:
            _mount("", target, "", MS_REMOUNT | MS_BIND | flags)
    if spec["root"].get("readonly"):
        _mount("", rootfs, "", MS_REMOUNT | MS_BIND | MS_RDONLY)


def _drop(process: dict[str, Any]) -> None:
    """Limits, user and capabilities."""
    for each in process.get("rlimits", []):
        resource.setrlimit(getattr(resource, each["type"]), (each["soft"], each["hard"]))
    sets = process.get("capabilities", {})
    for number in range(_LAST_CAPABILITY + 1):
        name = _CAPABILITIES[number] if number < len(_CAPABILITIES) else ""
        if f"CAP_{name}" not in sets.get("bounding", []):
            _call("prctl", _PR_CAPBSET_DROP, number, 0, 0, 0)
    user = process.get("user", {})
    os.setgroups(user.get("additionalGids", []))
    os.setgid(user.get("gid", 0))
    os.setuid(user.get("uid", 0))
    if not user.get("uid", 0):
        masks = [
            sum(1 << number for number, name in enumerate(_CAPABILITIES) if f"CAP_{name}" in sets.get(kind, []))
            for kind in ("effective", "permitted", "inheritable")
        ]
        data = struct.pack("6I", *[mask & 0xFFFFFFFF for mask in masks], *[mask >> 32 for mask in masks])
        _call("capset", struct.pack("Ii", 0x20080522, 0), data)
    if process.get("noNewPrivileges"):
        _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
