"""The directory that a VMM runs in which opens files by paths: a small tmpfs of its own user, with all it may open.

``<sandbox directory>/vmm``. The VMM is started with it as its working directory and names all files by relative paths;
nothing above it can be entered by its user. Disks are device nodes made here, one per disk: a block device under a node
that the VMM may open, or an image file behind a loop device, which the kernel frees when its last user, the VMM, is
gone. So no file of a snapshotter changes its owner, and whoever takes over the VMM gets what it was given, as it was
given: read-only or not.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass

from kuasar.agent import kernel
from kuasar.backends.base import Host, User
from kuasar.core.errors import BackendFailed, wrap

_NAME = "vmm"
_OPTIONS = "size=8m,nr_inodes=1024,mode=0700"
_LOOP_CONTROL = "/dev/loop-control"
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE, _LOOP_CLR_FD = 0x4C82, 0x4C0A, 0x4C01
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR = 1, 4
_LOOP_MAJOR = 7
_LOOP_CONFIG = struct.Struct("=II QQQQQ IIII 64s64s32s QQ 64x")
_BLKGETSIZE64 = 0x80081272
_TRIES = 16
"""For a free loop device: others look for one, too."""


@dataclass(frozen=True)
class Disk:
    """A disk that the VMM can open."""

    path: str
    """In the jail."""
    status: os.stat_result
    """Of its node."""
    bytes: int


class Jail:
    """The directory of one VMM. Made by the first worker, found by the next ones, freed by :meth:`release`."""

    def __init__(self, host: Host, user: User) -> None:
        self._host = host
        self._user = user
        self.directory = f"{host.directory}/{_NAME}"

    def open(self, *empty: str) -> None:
        """Make it, with files of these names that have nothing in them. Undone by :meth:`release`."""
        self._host.acquiring("mount", self.directory)
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            if not os.path.ismount(self.directory):
                owner = f"uid={self._user.uid},gid={self._user.gid}"
                kernel.mount(
                    "tmpfs", self.directory, "tmpfs", kernel.MS_NOSUID | kernel.MS_NOEXEC, f"{_OPTIONS},{owner}"
                )
            for name in empty:
                fd = os.open(f"{self.directory}/{name}", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.fchown(fd, self._user.uid, self._user.gid)
                finally:
                    os.close(fd)
        except OSError as exc:
            raise wrap(exc, "cannot make the directory of the VMM") from exc

    def add_disk(self, name: str, source: str, *, read_only: bool) -> tuple[Disk, int]:
        """Make the block device or image file ``source`` a disk called ``name``; what had that name goes. Gives it
        and a descriptor that keeps it while the VMM has not opened it, for the caller to close."""
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
        try:
            fd = os.open(source, flags)
            try:
                if stat.S_ISBLK(os.fstat(fd).st_mode):
                    return self._node(name, os.fstat(fd).st_rdev, fd), fd
                loop, number = _loop_device(fd, self.directory, read_only)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
            try:
                return self._node(name, number, loop), loop
            except BaseException:
                os.close(loop)
                raise
        except OSError as exc:
            raise wrap(exc, f"cannot give {source} to the VMM") from exc

    def _node(self, name: str, number: int, fd: int) -> Disk:
        path = f"{self.directory}/{name}"
        self.remove_disk(name)
        os.mknod(path, stat.S_IFBLK | 0o600, number)
        os.chown(path, self._user.uid, self._user.gid)
        (size,) = struct.unpack("Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))
        return Disk(name, os.stat(path), size)

    def remove_disk(self, name: str) -> None:
        """Take its node away; harmless when it is gone. A VMM that has it open keeps it."""
        with suppress(FileNotFoundError):
            os.unlink(f"{self.directory}/{name}")

    def release(self) -> None:
        """Free it; harmless to repeat. The VMM is dead."""
        try:
            if os.path.ismount(self.directory):
                kernel.umount(self.directory)
            with suppress(FileNotFoundError):
                os.rmdir(self.directory)
        except OSError as exc:
            raise wrap(exc, f"cannot remove the directory of the VMM {self.directory}") from exc
        self._host.released("mount", self.directory)


def _loop_device(backing: int, directory: str, read_only: bool) -> tuple[int, int]:
    """A loop device of the file ``backing``, which ends with its last user: its descriptor and number. Its node in
    /dev is not needed: there may be none yet."""
    info = (0, 0, 0, 0, 0, 0, 0, 0, _LO_FLAGS_AUTOCLEAR | (_LO_FLAGS_READ_ONLY if read_only else 0))
    config = _LOOP_CONFIG.pack(backing, 0, *info, b"kuasar", b"", b"", 0, 0)
    control = os.open(_LOOP_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            number = os.makedev(_LOOP_MAJOR, fcntl.ioctl(control, _LOOP_CTL_GET_FREE))
            device = _open_number(directory, number, os.O_RDONLY if read_only else os.O_RDWR)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
            except OSError as exc:
                os.close(device)
                if exc.errno == errno.EBUSY:  # somebody else has taken it
                    continue
                raise
            return device, number
    finally:
        os.close(control)
    raise BackendFailed(f"no loop device can be had: {_TRIES} that were free were taken by others at once")


def _open_number(directory: str, number: int, flags: int) -> int:
    path = f"{directory}/.new-{os.getpid()}"
    with suppress(FileNotFoundError):
        os.unlink(path)
    os.mknod(path, stat.S_IFBLK | 0o600, number)
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    finally:
        os.unlink(path)
