"""Moving bytes between descriptors on the loop, with back-pressure and an end that can be awaited.

A pump borrows its two descriptors (both non-blocking): whoever made it closes them, after :meth:`Pump.stop`. It reads
only when the sink has taken everything, so a slow reader slows its writer down and nothing piles up here.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod

from kuasar.core.aio import Future, Loop

_CHUNK = 65536
_ROUNDS = 16
"""Chunks moved per turn of the loop, so that one busy stream does not starve the others."""
_SPLICE_FLAGS = 1 | 2  # SPLICE_F_MOVE | SPLICE_F_NONBLOCK


class Pump(ABC):
    """One direction from ``source`` to ``sink``. ``done`` ends when the source has ended, the sink has broken or
    the pump was stopped."""

    def __init__(self, loop: Loop, source: int, sink: int) -> None:
        self._loop = loop
        self._source = source
        self._sink = sink
        self.done: Future[None] = Future(loop)
        self.moved = 0
        """Bytes that the sink has taken."""
        loop.add_reader(source, self._run)

    @abstractmethod
    def _move(self) -> bool:
        """Move one chunk; False at the end. Raises BlockingIOError after :meth:`_wait_for_sink` or when dry."""

    def _run(self) -> None:
        try:
            for _ in range(_ROUNDS):
                if not self._move():
                    self.stop()
                    return
        except BlockingIOError:
            return
        except OSError as exc:
            # EIO: the last user of a terminal is gone. EPIPE: nobody reads any more.
            if exc.errno not in (errno.EIO, errno.EPIPE):
                self._loop.on_error("relay", exc)
            self.stop()

    def _wait_for_sink(self) -> None:
        self._loop.remove_reader(self._source)
        self._loop.add_writer(self._sink, self._sink_ready)

    def _sink_ready(self) -> None:
        self._loop.remove_writer(self._sink)
        self._loop.add_reader(self._source, self._run)
        self._run()

    def stop(self) -> None:
        """Move no more; harmless when stopped."""
        if not self.done.done:
            self._loop.remove_reader(self._source)
            self._loop.remove_writer(self._sink)
            self.done.set_result(None)


class SplicePump(Pump):
    """From a pipe to a pipe or FIFO, without copying."""

    def _move(self) -> bool:
        try:
            moved = os.splice(self._source, self._sink, _CHUNK * _ROUNDS, flags=_SPLICE_FLAGS)
        except BlockingIOError:
            if _readable(self._source):
                self._wait_for_sink()
            raise
        self.moved += moved
        return moved > 0


class CopyPump(Pump):
    """From and to anything that can be polled."""

    def __init__(self, loop: Loop, source: int, sink: int) -> None:
        self._pending = memoryview(b"")
        super().__init__(loop, source, sink)

    def _move(self) -> bool:
        if not self._pending:
            data = os.read(self._source, _CHUNK)
            if not data:
                return False
            self._pending = memoryview(data)
        try:
            while self._pending:
                moved = os.write(self._sink, self._pending)
                self.moved += moved
                self._pending = self._pending[moved:]
        except BlockingIOError:
            self._wait_for_sink()
            raise
        return True


def _readable(fd: int) -> bool:
    import select

    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
