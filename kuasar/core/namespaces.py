"""Joining a namespace by its path: what worker (in a thread) and agent (for good) both need.

``setns`` moves the calling thread alone, so a short-lived thread can work in a network namespace without its process
leaving the host's. Python has a function for it from 3.12 on.
"""

from __future__ import annotations

import ctypes
import errno
import os

from kuasar.core.errors import InvalidArgument, NotFound, wrap

CLONE_NEWNET = 0x40000000

# PyDLL: moving to another namespace takes microseconds, less than handing the interpreter to another thread and back
_libc = ctypes.PyDLL(None, use_errno=True)


def setns(fd: int, kind: int) -> None:
    """setns(2): move the calling thread into the namespace behind ``fd``, which must be of ``kind`` (CLONE_NEW*)."""
    if _libc.setns(fd, kind) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def open_netns(path: str) -> int:
    """A descriptor of the network namespace at ``path``, owned by the caller. Raises :class:`NotFound` when it is gone,
    :class:`InvalidArgument` when the path is none."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise NotFound(f"netns: the network namespace {path} is gone") from exc
    except (ValueError, IsADirectoryError) as exc:
        raise InvalidArgument(f"netns: {path!r} is no network namespace", field="netns") from exc
    except OSError as exc:
        raise wrap(exc, f"netns: cannot open the network namespace {path}") from exc


def join_netns(path: str) -> None:
    """Move the calling thread into the network namespace at ``path``, for good. Raises as :func:`open_netns` does."""
    fd = open_netns(path)
    try:
        setns(fd, CLONE_NEWNET)
    except OSError as exc:
        if exc.errno == errno.EINVAL:
            # The file is there, but nothing is mounted on it (any more), or a namespace of another kind.
            raise InvalidArgument(f"netns: {path!r} is no network namespace", field="netns") from exc
        raise wrap(exc, f"cannot join the network namespace {path}") from exc
    finally:
        os.close(fd)


def is_own_netns(path: str) -> bool:
    """Whether ``path`` is the network namespace that the process itself is in."""
    fd = open_netns(path)
    try:
        theirs, ours = os.fstat(fd), os.stat("/proc/self/ns/net")
    finally:
        os.close(fd)
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)
