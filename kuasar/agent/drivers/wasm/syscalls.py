"""The system calls that Python 3.11 has no function for. Each raises ``OSError`` with the file name where there is one.

Needs Linux 5.12 (``mount_setattr``). Numbers are those of the common table that all architectures have shared since
Linux 5.0; older calls go through libc's wrappers.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

CLONE_NEWNS = 0x20000

MS_REC = 0x4000
MS_SLAVE = 0x80000
MS_PRIVATE = 0x40000
MS_BIND = 0x1000
MNT_DETACH = 2

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_ATIME = 0x70
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_KEEPCAPS = 8
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_SYMLINKS = 0x4, 0x10
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _checked(result: int, path: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def _syscall(number: int, *args: Any, path: str | None = None) -> int:
    words = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    return _checked(int(_libc.syscall(ctypes.c_long(number), *words)), path)


def unshare(flags: int) -> None:
    """Leave the namespaces named by ``flags`` for new ones."""
    _checked(_libc.unshare(ctypes.c_int(flags)))


def mount(source: str | None, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    """The classic mount(2)."""
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, fstype, data)]
    _checked(_libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]), target)


def unmount(target: str, flags: int) -> None:
    """umount2(2)."""
    _checked(_libc.umount2(os.fsencode(target), ctypes.c_int(flags)), target)


def pivot_root(new_root: str, put_old: str) -> None:
    """Make ``new_root`` the root mount of this mount namespace."""
    _checked(_libc.pivot_root(os.fsencode(new_root), os.fsencode(put_old)), new_root)


def clone_tree(path: str, recursive: bool) -> int:
    """A detached bind mount of ``path`` (with the mounts below it, if ``recursive``) as a descriptor."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return _syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags, path=path)


def set_mount_attributes(tree: int, attr_set: int, attr_clr: int, propagation: int, recursive: bool) -> None:
    """Change the flags (``MOUNT_ATTR_*``) and the propagation (``MS_*``) of a detached or attached mount."""
    attr = _MountAttr(attr_set, attr_clr, propagation, 0)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    _syscall(_MOUNT_SETATTR, tree, b"", flags, ctypes.byref(attr), ctypes.sizeof(attr))


def attach_tree(tree: int, target: str) -> None:
    """Put a detached mount on ``target``."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_SYMLINKS
    _syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), flags, path=target)


def prctl(option: int, arg2: int | bytes = 0, arg3: int = 0) -> int:
    """prctl(2) with up to two arguments."""
    second = arg2 if isinstance(arg2, bytes) else ctypes.c_ulong(arg2)
    zero = ctypes.c_ulong(0)
    return _checked(_libc.prctl(ctypes.c_int(option), second, ctypes.c_ulong(arg3), zero, zero))


def set_capabilities(mask: int, inheritable: int = 0) -> None:
    """Make ``mask`` (bit n: capability n) the effective and permitted set of this thread; set the inheritable one."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    words = [mask & 0xFFFFFFFF, mask & 0xFFFFFFFF, inheritable & 0xFFFFFFFF, mask >> 32, mask >> 32, inheritable >> 32]
    _checked(_libc.capset(header, (ctypes.c_uint32 * 6)(*words)))


def get_capabilities() -> int:
    """The permitted set of this thread."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    _checked(_libc.capget(header, data))
    return int(data[1]) | int(data[4]) << 32


def file_system_type(file: int | str) -> int:
    """The magic number of the file system that holds ``file`` (a descriptor or a path)."""
    buffer = (ctypes.c_long * 32)()  # struct statfs; its first word is f_type
    if isinstance(file, int):
        _checked(_libc.fstatfs(ctypes.c_int(file), buffer))
    else:
        _checked(_libc.statfs(os.fsencode(file), buffer), file)
    return int(buffer[0])


def set_command_line(name: str, arguments: bytes) -> None:
    """What ps shows of this process: its short name, and as much of ``arguments`` as its first ones had room for.

    Needs /proc.
    """
    prctl(PR_SET_NAME, os.fsencode(name))
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end
    if start and end > start:
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, arguments, min(len(arguments), end - start - 1))
