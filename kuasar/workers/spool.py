"""A stretch of one stream in memory that outlives its process: what makes a relay exact across the worker's death.

A spool is a memfd in which the bytes of a stream lie at their own offsets. Everything about it is state of the
kernel's, so whoever holds a duplicate of its descriptor (the keeper does) hands all of it to a successor:

- its *size* is how much has come; writing the same bytes again at the same offset changes nothing;
- its *file position* is how much has been moved on: ``splice`` without an offset moves bytes and position in one system
  call, which a kill does not divide;
- a *seal* against growing says that the stream has ended there.

What has been moved on is punched out. The pages of an output spool lie in the FIFO itself until they are read, so only
what has left the FIFO is punched, or else a hole could show through.
"""

from __future__ import annotations

import array
import fcntl
import os
import termios

from kuasar.core.holes import punch

_SPLICE_F_NONBLOCK = 2
_F_ADD_SEALS, _F_GET_SEALS, _F_SEAL_GROW = 1033, 1034, 4
_PAGE = os.sysconf("SC_PAGESIZE")
_PUNCH_BYTES = 64 * 1024
"""Punched is in steps that are worth a system call."""


class Spool:
    """Owns its descriptor ``fd`` until :meth:`close`."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.position = os.lseek(fd, 0, os.SEEK_CUR)
        """What lies before has been moved on (output) or come (input)."""
        self.end = max(os.fstat(fd).st_size, self.position)
        """Everything before has come."""
        self.ended = bool(fcntl.fcntl(fd, _F_GET_SEALS) & _F_SEAL_GROW)
        """Nothing comes any more."""
        self._punched = 0

    @classmethod
    def create(cls) -> Spool:
        """An empty one."""
        return cls(os.memfd_create("kuasar-spool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))

    @property
    def fresh(self) -> bool:
        """Whether nothing has ever been in it."""
        return self.end == 0

    def begin_at(self, offset: int) -> None:
        """The stream is known from ``offset`` only. Allowed while fresh."""
        self.position = os.lseek(self.fd, offset, os.SEEK_SET)
        self.end = self._punched = offset

    def write(self, data: bytes | memoryview) -> None:
        """Add ``data`` at the end; the position stays."""
        view = memoryview(data)
        while view:
            size = os.pwrite(self.fd, view, self.end)
            self.end += size
            view = view[size:]

    def finish(self) -> None:
        """The stream ends here; harmless to repeat."""
        fcntl.fcntl(self.fd, _F_ADD_SEALS, _F_SEAL_GROW)
        self.ended = True

    def move_to(self, fifo: int) -> bool:
        """Move on what is there; False if the FIFO takes no more for now."""
        try:
            while self.position < self.end:
                self.position += os.splice(self.fd, fifo, self.end - self.position, flags=_SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return False
        finally:
            if self.position - self._punched >= 2 * _PUNCH_BYTES:
                self.forget(self.position - _bytes_in(fifo))
        return True

    def fill_from(self, fifo: int, size: int) -> int:
        """Take ``size`` bytes at most from the FIFO; gives their number, 0 if it has ended. Raises BlockingIOError."""
        moved = os.splice(fifo, self.fd, size, flags=_SPLICE_F_NONBLOCK)
        self.position += moved
        self.end = self.position
        return moved

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from ``offset``, ``size`` at most; the position stays."""
        return os.pread(self.fd, min(size, self.end - offset), offset)

    def forget(self, offset: int) -> None:
        """Nobody needs what lies before ``offset``. Gives whole pages back, in steps."""
        offset -= offset % _PAGE
        if offset - self._punched >= _PUNCH_BYTES:
            start = self._punched - self._punched % _PAGE
            punch(self.fd, start, offset - start)
            self._punched = offset

    def close(self) -> None:
        """Harmless when closed."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _bytes_in(fifo: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(fifo, termios.FIONREAD, count)
    return count[0]
