"""Loop devices: the disks of a guest. One that is let go of is free again as soon as nothing is mounted from it."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_LOOP_CLR_FD, _LOOP_CONFIGURE, _LOOP_CTL_GET_FREE = 0x4C01, 0x4C0A, 0x4C82
_READ_ONLY, _AUTOCLEAR = 1, 4
_CONFIG = struct.Struct("=2I 5Q 4I 64s64s32s2Q 64x")  # struct loop_config with struct loop_info64
_TRIES = 50


class Loop:
    """A loop device on the open file ``backing``, which stays the caller's."""

    def __init__(self, backing: int, read_only: bool) -> None:
        for _ in range(_TRIES):
            self.number = _free_number()
            self.path = f"/dev/loop{self.number}"
            self._fd = os.open(self.path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
            try:
                fcntl.ioctl(self._fd, _LOOP_CONFIGURE, _config(backing, read_only))
                return
            except OSError as exc:
                os.close(self._fd)
                if exc.errno != errno.EBUSY:  # somebody else was faster
                    raise
        raise OSError(errno.EBUSY, "no loop device can be had")

    @property
    def device(self) -> int:
        """Its number, as mknod wants it."""
        return os.stat(self.path).st_rdev

    def tell(self) -> None:
        """Have the kernel send its event once more: whoever looks for the disk looks now."""
        with open(f"/sys/block/loop{self.number}/uevent", "w", encoding="ascii") as file:
            file.write("change")

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)


def _free_number() -> int:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
    finally:
        os.close(control)


def _config(backing: int, read_only: bool) -> bytearray:
    flags = _AUTOCLEAR | (_READ_ONLY if read_only else 0)
    fields = [backing, 512, *[0] * 5, 0, 0, 0, flags, b"kuasar stand-in", b"", b"", 0, 0]
    return bytearray(_CONFIG.pack(*fields))
