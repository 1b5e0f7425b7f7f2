"""A filter of system calls: what a module can never have asked for is refused, should it ever get out of its engine.

A module makes no system calls of its own, so the profile of the specification, written for programs that do, says
nothing about it. The filter refuses what leads further into the host: other programs and processes, namespaces and
mounts, sockets (WASI preview 1 has none), tracing, keys, kernel modules, and interfaces known for their bugs.
Everything else, which the engine may need, stays allowed. Refused calls fail with EPERM; calls by the numbers of
another architecture kill.

An engine that is a program of its own must be executed behind the filter; then there is no other program to execute,
because every mount but the engine's files is without permission to (``noexec``).
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

from kuasar.agent.drivers.wasm import syscalls as sys
from kuasar.core.errors import BackendFailed

# name: number on x86_64, number on aarch64
_REFUSED = {
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "kcmp": (312, 272),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "unshare": (272, 97),
    "setns": (308, 268),
    "personality": (135, 92),
    "socket": (41, 198),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "acct": (163, 89),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "quotactl": (179, 60),
}
_ONLY_X86 = {"fork": 57, "vfork": 58, "iopl": 172, "ioperm": 173, "modify_ldt": 154}
_CLONE = (56, 220)
_CLONE3 = 435
_CLONE_THREAD = 0x10000
_AF_INET, _AF_INET6 = 2, 10
_X32_BIT = 0x40000000
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data, little-endian
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install(executes: bool = False, sockets: bool = False) -> None:
    """Put the filter on this process, for good. Needs no_new_privs; threads made later have it too.

    ``executes`` lets ``execve`` through, ``sockets`` those of the internet protocols.
    """
    code = build(platform.machine(), executes, sockets)
    program = _Program(len(code) // 8, code)
    sys.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(program))


def build(machine: str, executes: bool = False, sockets: bool = False) -> bytes:
    """The filter for a ``machine`` as the kernel wants it. Raises :class:`BackendFailed` for one that is not known."""
    if machine not in _ARCHITECTURES:
        raise BackendFailed(f"no system call filter for {machine} (known: {', '.join(_ARCHITECTURES)})")
    column, architecture = _ARCHITECTURES[machine]
    allowed = ({"execve"} if executes else set()) | ({"socket"} if sockets else set())
    refused = [numbers[column] for name, numbers in _REFUSED.items() if name not in allowed]
    code = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    if machine == "x86_64":
        refused += _ONLY_X86.values()
        code += [(_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _KILL)]
    for number in refused:
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    if sockets:
        code += [(_EQUAL, 0, 5, _REFUSED["socket"][column]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
        code += [(_EQUAL, 2, 0, _AF_INET), (_EQUAL, 1, 0, _AF_INET6)]
        code += [(_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    # libc goes back to clone when there is no clone3, whose flags a filter cannot see
    code += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    code += [(_EQUAL, 0, 3, _CLONE[column]), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_ANY_BIT, 1, 0, _CLONE_THREAD)]
    code += [(_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)
