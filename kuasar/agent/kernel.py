"""The system calls of the agent that Python 3.11 has no function for. Each raises ``OSError`` with its path.

Numbers above 424 are the same on every architecture; the older calls go through libc.
"""

from __future__ import annotations

import ctypes
import os
import struct

CLONE_NEWNS = 0x00020000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
MADV_NORMAL = 0
MADV_RANDOM = 1
MADV_DONTNEED = 4
MADV_PAGEOUT = 21

_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 428, 429, 430, 431, 432, 442
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC, _AT_RECURSIVE, _AT_EMPTY_PATH = 0x1, 0x80000, 0x8000, 0x1000
_MOUNT_ATTR = struct.Struct("4Q")  # attributes to set, to clear, propagation, user namespace
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
_MOVE_MOUNT_F_EMPTY_PATH = 4
_AT_FDCWD = -100
_ATTRIBUTES = {MS_RDONLY: 0x1, MS_NOSUID: 0x2, MS_NODEV: 0x4, MS_NOEXEC: 0x8}  # MS_* to MOUNT_ATTR_*
_PR_SET_CHILD_SUBREAPER = 36
_OPENAT2 = 437
_OPEN_HOW = struct.Struct("3Q")  # flags, mode, how paths are resolved
_RESOLVE_IN_ROOT, _RESOLVE_NO_MAGICLINKS = 0x10, 0x2

# PyDLL: one thread, so there is nobody to hand the interpreter to during a call
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _checked(result: int, path: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    _checked(
        _libc.mount(
            os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), os.fsencode(data) or None
        ),
        target,
    )


def umount(target: str, flags: int = MNT_DETACH | UMOUNT_NOFOLLOW) -> None:
    """umount2(2); lazily unless told otherwise."""
    _checked(_libc.umount2(os.fsencode(target), flags), target)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked(_libc.unshare(flags))


def advise(start: int, length: int, advice: int) -> None:
    """madvise(2) about memory of ours, with one of ``MADV_*``."""
    _checked(_libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), advice))


def code_mappings(with_constants: bool = False) -> list[tuple[int, int]]:
    """Start and end of our own mappings of code and of the loader's tables before it, which nothing has written to.

    ``with_constants``: all that nothing can write to any more, though the loader may have before it closed them.
    """
    found = []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        for line in file.read().splitlines():
            area, mode, offset, _, inode, *_ = line.split(None, 5)
            if inode != "0" and (mode == "r-xp" or (mode == "r--p" and (with_constants or int(offset, 16) == 0))):
                start, end = area.split("-")
                found.append((int(start, 16), int(end, 16)))
    return found


def become_subreaper() -> None:
    """Orphans among our descendants become our children, as they do for the first process of a pid namespace."""
    _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def bind_tree(source: str, target: str, propagation: int, read_only: bool) -> None:
    """Bind ``source`` with all that is mounted below it, as a whole and in its final form: with ``propagation``
    (MS_PRIVATE or MS_SLAVE) towards where it comes from, and every mount of it read-only if so. Linux 5.12."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_RECURSIVE
    tree = _checked(_libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), flags), source)
    try:
        attr = _MOUNT_ATTR.pack(_ATTRIBUTES[MS_RDONLY] if read_only else 0, 0, propagation, 0)
        flags = _AT_EMPTY_PATH | _AT_RECURSIVE
        _checked(_libc.syscall(_MOUNT_SETATTR, tree, b"", flags, attr, _MOUNT_ATTR.size), source)
        _move_mount(tree, target)
    finally:
        os.close(tree)


def open_inside(root_fd: int, path: str) -> int:
    """A descriptor (O_PATH) of ``path`` with the directory ``root_fd`` as the root of all links on the way."""
    flags = os.O_PATH | os.O_CLOEXEC
    how = _OPEN_HOW.pack(flags, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    return _checked(_libc.syscall(_OPENAT2, root_fd, os.fsencode(path), how, _OPEN_HOW.size), path)


def _move_mount(tree: int, target: str) -> None:
    _checked(_libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH), target)


def mount_by_parameters(kind: str, target: str, flags: int, parameters: list[tuple[str, str | None]]) -> None:
    """Mount through the file-system context calls: each parameter on its own, so that their sum may exceed a page."""
    context = _checked(_libc.syscall(_FSOPEN, kind.encode(), _FSOPEN_CLOEXEC), kind)
    try:
        for name, value in parameters:
            command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
            text = None if value is None else os.fsencode(value)
            _checked(_libc.syscall(_FSCONFIG, context, command, os.fsencode(name), text, 0), f"{name}={value}")
        _checked(_libc.syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0), target)
        attributes = sum(attribute for flag, attribute in _ATTRIBUTES.items() if flags & flag)
        mounted = _checked(_libc.syscall(_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes), target)
    finally:
        os.close(context)
    try:
        _move_mount(mounted, target)
    finally:
        os.close(mounted)
