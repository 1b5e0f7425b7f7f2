"""The input of a process, from a stream of the agent channel into its pipe or terminal.

Owned by the process's :class:`kuasar.agent.remote.RemoteStreams`; writes to a descriptor that is theirs. What has come
is taken for good, because this memory lives as long as the process; what the process has not read yet is held here,
a window of it at most.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from kuasar.agent.protocol import WINDOW_BYTES, Data, Window
from kuasar.core import log
from kuasar.core.aio import Loop


class Receiver:
    """An input stream. ``on_end`` is called once when the stream has ended and all of it has been written."""

    def __init__(self, loop: Loop, stream: str, send: Callable[[Window], None], on_end: Callable[[], None]) -> None:
        self.stream = stream
        self._loop = loop
        self._send = send
        self._on_end = on_end
        self._sink: int | None = None
        self._pending = bytearray()
        self._taken = 0
        self._written = 0
        self._told = 0
        self._ended = False
        self._broken = False
        """The process reads no more: what comes is thrown away."""

    def start(self, sink: int) -> None:
        """Write to ``sink``, non-blocking, from now on, and let the sender begin."""
        self._sink = sink
        self.connected()

    def connected(self) -> None:
        """There is a new connection: tell its sender where to go on."""
        if self._sink is not None or self._ended:
            self._told = self._written
            self._send(Window(self.stream, self._taken + self._ended, self._written + WINDOW_BYTES))

    def on_data(self, frame: Data) -> None:
        """Take what is new of ``frame``; what does not follow on, or was not asked for, is dropped with a line in the
        log."""
        if self._sink is None or self._ended:
            self.connected()
            return
        end = frame.offset + len(frame.data)
        if frame.offset > self._taken or end > self._written + WINDOW_BYTES:
            log.error("input that cannot be placed is dropped", stream=self.stream, offset=frame.offset)
            return
        if end > self._taken:
            self._pending += memoryview(frame.data)[self._taken - frame.offset :]
            self._taken = end
        self._ended = frame.end and end == self._taken
        self._write()
        if self._ended or not frame.data:
            self.connected()

    def finish(self) -> None:
        """The input ends with what has come; harmless when it has ended."""
        if self._sink is not None and not self._ended:
            self._ended = True
            self._write()
            self.connected()

    def stop(self) -> None:
        """Write no more; harmless when stopped."""
        if self._sink is not None:
            self._loop.remove_writer(self._sink)
            self._sink = None
        self._pending.clear()

    def _write(self) -> None:
        assert self._sink is not None
        while self._pending:
            try:
                size = len(self._pending) if self._broken else os.write(self._sink, self._pending)
            except BlockingIOError:
                self._loop.add_writer(self._sink, self._write)
                self._tell()
                return
            except OSError as exc:
                if exc.errno not in (errno.EPIPE, errno.EIO):
                    self._loop.on_error(f"stream {self.stream}", exc)
                self._broken = True
                continue
            self._written += size
            del self._pending[:size]
        self._loop.remove_writer(self._sink)
        self._tell()
        if self._ended:
            self.stop()
            self._on_end()

    def _tell(self) -> None:
        """Let the sender go on (and forget) in steps that are worth a frame."""
        if self._written - self._told >= WINDOW_BYTES // 4:
            self.connected()
