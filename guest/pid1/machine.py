"""The machine under PID 1: file systems, cgroups, modules, loopback, console, power."""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import signal
import socket
import struct
import sys
from contextlib import suppress

from guest.pid1 import modules
from kuasar.agent import kernel

_NO_PROGRAMS = kernel.MS_NOSUID | kernel.MS_NOEXEC
_PLAIN = _NO_PROGRAMS | kernel.MS_NODEV
_MOUNTS = (
    ("proc", "/proc", "proc", _PLAIN, ""),
    ("sysfs", "/sys", "sysfs", _PLAIN, ""),
    ("devtmpfs", "/dev", "devtmpfs", _NO_PROGRAMS, "mode=0755"),
    ("devpts", "/dev/pts", "devpts", _NO_PROGRAMS, "gid=0,mode=0620,ptmxmode=0666"),
    ("shm", "/dev/shm", "tmpfs", _PLAIN, "mode=1777"),  # noqa: S108 - the mount point
    ("mqueue", "/dev/mqueue", "mqueue", _PLAIN, ""),
    ("run", "/run", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755"),
    ("tmp", "/tmp", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=1777"),  # noqa: S108 - as above
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", _PLAIN, "nsdelegate,memory_recursiveprot"),
)
_CGROUP = "/sys/fs/cgroup"

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_INTERFACE_REQUEST = "16sh22x"
_RB_POWER_OFF, _RB_AUTOBOOT = 0x4321FEDC, 0x01234567


def say(text: str) -> None:
    """One line on the console, recognisable among the kernel's."""
    os.write(2, f"kuasar-guest: {text}\n".encode(errors="replace"))


def kernel_arguments() -> dict[str, str]:
    """The words of the kernel's command line; those without a value have the empty one."""
    with open("/proc/cmdline", encoding="ascii", errors="replace") as file:
        return {name: value for name, _, value in (word.partition("=") for word in file.read().split())}


def mount_all() -> None:
    """Every file system that a container or the agent expects; what is mounted already stays. Then cgroups."""
    for source, target, kind, flags, data in _MOUNTS:
        if os.path.ismount(target):
            continue
        with suppress(FileExistsError):
            os.mkdir(target)
        kernel.mount(source, target, kind, flags, data)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        with suppress(FileExistsError):
            os.symlink(target, f"/dev/{name}")
    _delegate_controllers()
    _set_memory_policy()


def _delegate_controllers() -> None:
    """Let every controller of the kernel work in the cgroups of containers."""
    with open(f"{_CGROUP}/cgroup.controllers", encoding="ascii") as file:
        controllers = file.read().split()
    with open(f"{_CGROUP}/cgroup.subtree_control", "w", encoding="ascii") as file:
        file.write(" ".join(f"+{name}" for name in controllers))


def _set_memory_policy() -> None:
    """A program may ask for more memory than a small machine has, as it may on a large host: what it uses is what its
    container's limit is about."""
    with open("/proc/sys/vm/overcommit_memory", "w", encoding="ascii") as file:
        file.write("1")


def load_boot_modules() -> None:
    """The drivers and file systems that every guest needs; a missing one is told and costs only what needs it."""
    table = modules.Table()
    for name in table.at_boot:
        try:
            table.load(name)
        except OSError as exc:
            say(f"module {name}: {exc.strerror}")


def bring_loopback_up() -> None:
    """``lo``, with the addresses that the kernel gives it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        request = struct.pack(_INTERFACE_REQUEST, b"lo", 0)
        _, flags = struct.unpack(_INTERFACE_REQUEST, fcntl.ioctl(sock, _SIOCGIFFLAGS, request))
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack(_INTERFACE_REQUEST, b"lo", flags | _IFF_UP))


def protect_from_children() -> None:
    """No container's key press or signal ends the machine: the console's and the keyboard's reboot are switched off.
    (Signals without a handler never reach the first process.)"""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.reboot(0)  # Ctrl-Alt-Del becomes a signal to us ...
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ... which is ignored
    os.umask(0o022)


def give_memory_back() -> None:
    """What only the start has needed: memory that the interpreter has freed but keeps, and our claim to pages of code,
    of which those that are used come back at their next use, from the page cache."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    for start, end in kernel.code_mappings():
        kernel.advise(start, end - start, kernel.MADV_DONTNEED)


def power_off(reason: str) -> None:
    """Say why, write back what is dirty, switch the machine off (or have it reset, where that is what ends the VMM:
    ``kuasar.end=reboot``). Does not return."""
    how = _RB_POWER_OFF
    try:
        say(f"end: {reason}")
        sys.stderr.flush()
        os.sync()
        if kernel_arguments().get("kuasar.end") == "reboot":
            how = _RB_AUTOBOOT
    finally:
        ctypes.CDLL(None).reboot(how)
        os._exit(1)  # the kernel could not: its panic about our end is the next best thing
