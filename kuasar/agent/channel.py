"""A connection that carries frames, on the small loop; both ends of the agent protocol use it.

Owns its socket from construction to :meth:`Channel.close`. ``on_frame`` is called for every frame in order,
``on_close`` once when the peer is gone or has broken the protocol (not after a :meth:`Channel.close` of our own).
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable

from kuasar.agent.protocol import MAX_FRAME_BYTES, Data, Frame, FrameReader, MalformedFrame, encode, encode_data
from kuasar.core.aio import Loop
from kuasar.core.errors import Unavailable

MAX_BUFFERED_BYTES = 4 * MAX_FRAME_BYTES
"""A peer that lets more than this pile up is taken for dead."""
_READ_BYTES = 256 * 1024


class Channel:
    """One framed connection over a connected stream socket."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        on_frame: Callable[[Frame], None],
        on_close: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._on_frame = on_frame
        self._on_close = on_close
        self._reader = FrameReader()
        self._outgoing: deque[memoryview] = deque()
        self._outgoing_bytes = 0
        self.closed = False
        self.on_drained: Callable[[], None] = lambda: None
        """Called when everything that had to wait for the peer has left."""
        sock.setblocking(False)
        loop.add_reader(sock.fileno(), self._readable)

    def send(self, frame: Frame) -> None:
        """Send now, or as soon as the peer reads. Raises :class:`Unavailable` when closed and
        :class:`MalformedFrame` for what no frame can carry."""
        parts = encode_data(frame) if isinstance(frame, Data) else (encode(frame),)
        if self.closed:
            raise Unavailable("the agent channel is closed")
        sent = 0
        if not self._outgoing:
            try:
                sent = self._sock.sendmsg(parts)
            except BlockingIOError:
                pass
            except OSError as exc:
                # Told later, from the loop: the caller must not be called back from within its own send.
                self._loop.call_soon(self._fail, f"cannot send: {exc.strerror}")
                return
        for part in parts:
            if sent < len(part):
                self._keep(memoryview(part)[sent:])
            sent = max(0, sent - len(part))

    def _keep(self, rest: memoryview) -> None:
        if not self._outgoing:
            self._loop.add_writer(self._sock.fileno(), self._writable)
        self._outgoing.append(rest)
        self._outgoing_bytes += len(rest)
        if self._outgoing_bytes > MAX_BUFFERED_BYTES:
            self._loop.call_soon(self._fail, f"the peer does not read: {self._outgoing_bytes} bytes wait for it")

    def close(self) -> None:
        """Close the socket; what has not been sent is lost. Harmless when closed."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._outgoing.clear()
        self._outgoing_bytes = 0

    @property
    def backlog(self) -> int:
        """Bytes that wait for the peer."""
        return self._outgoing_bytes

    @property
    def drained(self) -> bool:
        """Whether everything sent has reached the kernel."""
        return not self._outgoing

    def _fail(self, reason: str) -> None:
        if not self.closed:
            self.close()
            self._on_close(reason)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as exc:
            self._fail(f"cannot receive: {exc.strerror}")
            return
        if not data:
            self._fail("the peer closed the connection")
            return
        try:
            for frame in self._reader.feed(data):
                self._on_frame(frame)
                if self.closed:
                    return
        except MalformedFrame as exc:
            self._fail(f"protocol error: {exc}")

    def _writable(self) -> None:
        while self._outgoing:
            part = self._outgoing[0]
            try:
                sent = self._sock.send(part)
            except BlockingIOError:
                return
            except OSError as exc:
                self._fail(f"cannot send: {exc.strerror}")
                return
            self._outgoing_bytes -= sent
            if sent < len(part):
                self._outgoing[0] = part[sent:]
                return
            self._outgoing.popleft()
        self._loop.remove_writer(self._sock.fileno())
        self.on_drained()
