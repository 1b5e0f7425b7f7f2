"""fork() with the flags that Python does not offer, and what a fresh clone does to become a process of its own.

Used by the zygote (clones) and by supervisord's plugin (:func:`set_parent_death_signal`, :func:`become_subreaper`).

The raw system call skips what glibc does around fork, so three rules hold: the caller has exactly one thread; the
thread id that glibc caches is renewed the way glibc does it (CLONE_CHILD_SETTID at the address that the kernel knows);
Python's own fork hooks are called by hand, with the GIL held throughout.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
from collections.abc import Sequence

CLONE_PARENT = 0x00008000
_CLONE_CHILD_CLEARTID = 0x00200000
_CLONE_CHILD_SETTID = 0x01000000
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_TID_ADDRESS = 40
# machine -> (number of clone, position of the child_tid argument): the order of the arguments differs
_CLONE_CALL = {"x86_64": (56, 3), "aarch64": (220, 4), "riscv64": (220, 4)}
# what a zygote, or supervisord before it, may have changed; SIGPIPE stays ignored, as in every Python
HANDLED_SIGNALS = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
)
_SPARE_FDS = 256
_MAX_FD = 1 << 20

_libc = ctypes.PyDLL(None, use_errno=True)  # PyDLL: the GIL stays held across the call
_libc.syscall.restype = ctypes.c_long


def threads_of_this_process() -> int:
    """How many threads the kernel sees here, also those that Python does not know of."""
    return len(os.listdir("/proc/self/task"))


def clone(flags: int) -> int:
    """Like ``os.fork``, with ``flags`` (CLONE_PARENT, CLONE_NEW*). Raises ``OSError``; must be the only thread."""
    machine = os.uname().machine
    if machine not in _CLONE_CALL:
        raise OSError(errno.ENOSYS, f"the clone call of {machine} is not known here")
    number, tid_position = _CLONE_CALL[machine]
    arguments = [0, 0, 0, 0, 0]
    arguments[0] = flags | signal.SIGCHLD
    address = ctypes.c_void_p()
    if _libc.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(address), 0, 0, 0) == 0 and address.value:
        arguments[0] |= _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID
        arguments[tid_position] = address.value
    hooks = ctypes.pythonapi
    hooks.PyOS_BeforeFork()
    pid: int = _libc.syscall(number, *(ctypes.c_ulong(value) for value in arguments))
    if pid == 0:
        hooks.PyOS_AfterFork_Child()
        return 0
    error = ctypes.get_errno()
    hooks.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(error, f"clone: {os.strerror(error)}")
    return pid


def set_parent_death_signal(parent: int) -> None:
    """Have the kernel kill this process when ``parent`` dies; if that has happened already, exit at once.

    Not inherited by children, kept across exec, dropped by a change of user.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def outlive_parent() -> None:
    """Undo :func:`set_parent_death_signal`, which supervisord's children are born with."""
    _prctl(_PR_SET_PDEATHSIG, 0)


def become_subreaper() -> None:
    """From now on orphaned descendants become children of this process. Not inherited by children."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")


def become_own_process(fds: Sequence[int]) -> None:
    """Leave everything behind that was the zygote's: session, signal handlers, mask, descriptors.

    ``fds`` become 0, 1, 2 and so on, of which programs inherit the first three; every other descriptor is closed. The
    caller has detached the Python objects that own descriptors, else their finalisers would close the new ones.
    """
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in HANDLED_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # first out of the way, so that no target overwrites a source that is still needed
    spare = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _SPARE_FDS) for fd in fds]
    for target, fd in enumerate(spare):
        os.dup2(fd, target, inheritable=target <= 2)
    os.closerange(len(fds), _MAX_FD)


class ProcessTitle:
    """The memory behind ``/proc/PID/cmdline``: made ready once in the zygote, written in each clone.

    The kernel shows the arguments' memory; a title that is longer than they were goes on into the environment's, which
    is free once every variable has been copied to the heap.
    """

    def __init__(self) -> None:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        self._start, self._args_end, env_start, env_end = (int(value) for value in fields[45:49])
        self._end = env_end if env_start == self._args_end else self._args_end
        for name, value in os.environb.items():
            os.environb[name] = value  # setenv(): libc keeps a copy of its own from here on

    def set(self, title: str) -> None:
        """Show ``title`` in ps; cut where the memory ends. The short name is its first word."""
        room = self._end - self._start - 1
        text = title.encode(errors="replace")[:room]
        ctypes.memset(self._start, 0, self._end - self._start)
        ctypes.memmove(self._start, text, len(text))
        if len(text) < self._args_end - self._start - 1:
            # the kernel's sign for "a title, ends at its first NUL": the last byte of the arguments is not NUL
            ctypes.memset(self._args_end - 1, 1, 1)
        _libc.prctl(_PR_SET_NAME, ctypes.c_char_p(text.split(b" ")[0][:15]), 0, 0, 0)
