"""What a process writes, on its way into a stream of the agent channel.

Owned by the process's :class:`kuasar.agent.remote.RemoteStreams`; reads a descriptor that is theirs. It keeps what the
receiver has not acknowledged and reads no more while that is a full ring, so a slow receiver slows its process down and
nobody else. What has been sent before a connection broke is sent again from where the next receiver says.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from kuasar.agent.protocol import LAST_BYTES, MAX_DATA_BYTES, WINDOW_BYTES, Data, Window
from kuasar.agent.ring import Ring
from kuasar.core.aio import Future, Loop

_ROUNDS = 4
"""Reads per turn of the loop, so that one busy stream does not starve the others."""


class Sender:
    """An output stream. ``ended``: the process writes no more. ``acknowledged``: the receiver has everything, the end
    included. ``send`` gives False while the channel is too full for more; :meth:`flush` is called when it is not."""

    def __init__(self, loop: Loop, stream: str, send: Callable[[Data], bool]) -> None:
        self.stream = stream
        self.ended: Future[None] = Future(loop)
        self.acknowledged: Future[None] = Future(loop)
        self._loop = loop
        self._send = send
        self._ring = Ring(WINDOW_BYTES)
        self._source: int | None = None
        self._reading = False
        self._sent = 0
        self._end_sent = False
        self._limit: int | None = None
        """What the receiver takes; None until it has told it on this connection."""
        self._to_ask = False
        """Whether it has still to be asked on this connection: a full channel puts that off."""
        self._last = 0
        """Once the process is dead: up to here its bytes go whatever the limit is."""

    @property
    def count(self) -> int:
        """Bytes the process has written."""
        return self._ring.end

    def start(self, source: int) -> None:
        """Read from ``source``, non-blocking, from now on."""
        self._source = source
        self._read_if_wanted()

    def connected(self) -> None:
        """There is a new connection: its receiver has to say first what it takes. Asks it to."""
        self._limit = None
        self._to_ask = not self._send(Data(self.stream, self._ring.start, b""))

    def on_window(self, window: Window) -> None:
        """The receiver has said what it has and what it takes. Numbers that cannot be are held to what can."""
        taken = min(window.taken, self._sent if self._limit is not None else self._ring.end)
        self._ring.release(taken)
        if self._limit is None:
            self._sent, self._end_sent = self._ring.start, False
        self._limit = max(window.limit, self._limit or 0)
        if self.ended.done and window.taken > self._ring.end:
            self.acknowledged.set_result(None)
        self.flush()
        self._read_if_wanted()

    def hurry(self) -> None:
        """The process is dead: what it has left behind, a full ring and a full pipe at most, is sent in any case."""
        self._last = self._ring.start + LAST_BYTES
        self.flush()
        self._read_if_wanted()

    def cut(self) -> None:
        """Read no more: what is there is all."""
        self._finish_reading()

    def stop(self) -> None:
        """Neither read nor send; harmless when stopped."""
        self._pause()
        self._source = None
        self._limit = None
        self._to_ask = False
        self.ended.set_result(None)
        self.acknowledged.set_result(None)

    def flush(self) -> None:
        """Send what may be sent."""
        if self._limit is None and self._to_ask:
            self.connected()
        if self._limit is None or self.acknowledged.done:
            return
        while self._sent < min(self._allowed, self._ring.end):
            data = self._ring.view(self._sent, min(MAX_DATA_BYTES, self._allowed - self._sent))
            last = self.ended.done and self._sent + len(data) == self._ring.end
            if not self._send(Data(self.stream, self._sent, data, last)):
                return
            self._sent += len(data)
            self._end_sent = last
        if self.ended.done and self._sent == self._ring.end and not self._end_sent:
            self._end_sent = self._send(Data(self.stream, self._sent, b"", True))

    @property
    def _allowed(self) -> int:
        return max(self._limit or 0, self._last)

    # -- reading -----------------------------------------------------------------------------------------------------

    def _wanted(self) -> int:
        """How many bytes may be read now. Of a dead process no more than what can be sent."""
        if not self._last:
            return self._ring.room
        return min(self._ring.room, self._allowed - self._ring.end)

    def _read_if_wanted(self) -> None:
        if self._source is None or self._wanted() <= 0:
            self._pause()
        elif not self._reading:
            self._reading = True
            self._loop.add_reader(self._source, self._readable)

    def _pause(self) -> None:
        if self._reading and self._source is not None:
            self._loop.remove_reader(self._source)
        self._reading = False

    def _readable(self) -> None:
        assert self._source is not None
        try:
            for _ in range(_ROUNDS):
                wanted = self._wanted()
                if wanted <= 0:
                    break
                size = os.readv(self._source, self._ring.space(min(wanted, MAX_DATA_BYTES)))
                if not size:
                    self._finish_reading()
                    return
                self._ring.filled(size)
                self.flush()
        except BlockingIOError:
            pass
        except OSError as exc:
            if exc.errno != errno.EIO:  # the last user of a terminal is gone
                self._loop.on_error(f"stream {self.stream}", exc)
            self._finish_reading()
            return
        self._read_if_wanted()

    def _finish_reading(self) -> None:
        self._pause()
        self._source = None
        self.ended.set_result(None)
        self.flush()
