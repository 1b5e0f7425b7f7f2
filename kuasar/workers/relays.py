"""One standard stream of a process, between the FIFO that containerd has made and the agent channel.

Every relay passes its bytes through a :class:`Spool`. Spool and FIFO are in the keeper from before the first byte until
:meth:`close`, so that a successor goes on exactly where the kernel says that this worker has stopped. The FIFO is open
both ways as long as there may be more to pass on: neither a reader nor a writer that goes away and comes back ends
anything.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import msgpack

from kuasar.agent.protocol import LAST_BYTES, MAX_DATA_BYTES, WINDOW_BYTES, Data, Window
from kuasar.core import log
from kuasar.core.aio import Future, Loop
from kuasar.core.fifo import open_fifo
from kuasar.workers.keeping import Keeping
from kuasar.workers.spool import Spool

Send = Callable[[Data | Window], None]
_ROUNDS = 4


class Relay(ABC):
    """What both directions have in common. ``stream``: its id on the channel; ``name``: its entry in the keeper."""

    def __init__(self, loop: Loop, keeping: Keeping, stream: str, name: str) -> None:
        self.stream = stream
        self._loop = loop
        self._keeping = keeping
        self._name = name
        self._spool: Spool | None = None
        self._fifo: int | None = None
        self._send: Send | None = None

    def open(self, path: str, field: str) -> None:
        """Begin with an empty spool. Raises :class:`InvalidArgument` naming ``field`` for what is no FIFO."""
        self._fifo = open_fifo(path, os.O_RDWR, field)
        self._spool = Spool.create()
        self._keep()

    def adopt(self) -> bool:
        """Go on where a predecessor has stopped; False if the keeper has nothing of it."""
        kept = self._keeping.get(self._name)
        if kept is None:
            return False
        fds, meta = kept
        self._take(fds, msgpack.unpackb(meta) if meta else {})
        self._keep()
        return True

    @abstractmethod
    def connected(self, send: Send) -> None:
        """There is a (new) connection to the agent."""

    @abstractmethod
    def on_frame(self, frame: Data | Window) -> None:
        """A frame of this stream."""

    @abstractmethod
    def machine_ended(self) -> None:
        """Nothing more comes from the agent, nor goes to it."""

    def close(self) -> None:
        """Let everything go, whether it has been passed on or not; harmless to repeat."""
        if self._fifo is not None or self._spool is not None:
            self._keeping.drop(self._name)
        self._close_fifo()
        self._close_spool()

    def _take(self, fds: list[int], meta: dict[str, Any]) -> None:
        self._spool, self._fifo = Spool(fds[0]), fds[1]

    @abstractmethod
    def _meta(self) -> dict[str, Any]:
        """What the descriptors themselves do not say."""

    def _keep(self) -> None:
        fds = [self._spool.fd] if self._spool is not None else []
        meta = self._meta()
        self._keeping.put(self._name, [*fds, self._fifo] if self._fifo is not None else fds, msgpack.packb(meta))

    def _only_read(self) -> None:
        """Give up our writing end: whoever reads sees the end when the other writers are gone."""
        assert self._fifo is not None
        both = self._fifo
        self._unwatch()
        self._fifo = os.open(f"/proc/self/fd/{both}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._keep()
        os.close(both)

    def _unwatch(self) -> None:
        if self._fifo is not None:
            self._loop.remove_reader(self._fifo)
            self._loop.remove_writer(self._fifo)

    def _close_fifo(self) -> None:
        self._unwatch()
        if self._fifo is not None:
            os.close(self._fifo)
            self._fifo = None

    def _close_spool(self) -> None:
        if self._spool is not None:
            self._spool.close()
            self._spool = None


class OutputRelay(Relay):
    """From the agent into the FIFO. When all has been moved on, the writing end goes, and with it the reader's wait for
    more; the reading end stays until :meth:`close`, because what is in a FIFO lives no longer than its openers."""

    _total: int | None = None
    """The length of a stream that has been moved on completely."""
    _told = 0
    """The limit that the agent has been told."""
    _telling = False
    _blocked = False
    """Whether the FIFO is full and watched."""
    _passed: Future[None] | None = None

    async def passed_on(self) -> None:
        """Until the whole stream is in the FIFO, or the relay is closed."""
        if self._spool is not None:
            self._passed = self._passed or self._loop.future()
            await self._passed

    def _close_spool(self) -> None:
        super()._close_spool()
        if self._passed is not None:
            self._passed.set_result(None)

    def connected(self, send: Send) -> None:
        self._send = send
        self._tell()
        self._move()

    def on_frame(self, frame: Data | Window) -> None:
        if not isinstance(frame, Data):
            return
        if not self._telling:
            self._telling = True  # once for all frames that have come together
            self._loop.call_soon(self._tell)
        spool = self._spool
        if spool is None or spool.ended:
            return
        if spool.fresh and frame.offset > 0:
            log.warning("a stream goes on without what was on its way", stream=self.stream, offset=frame.offset)
            spool.begin_at(frame.offset)
        end = frame.offset + len(frame.data)
        if frame.offset > spool.end or end > spool.position + WINDOW_BYTES + LAST_BYTES:
            log.error("output that cannot be placed is dropped", stream=self.stream, offset=frame.offset)
            return
        if end > spool.end:
            spool.write(memoryview(frame.data)[spool.end - frame.offset :])
        if frame.end and end == spool.end:
            spool.finish()
        self._move()

    def machine_ended(self) -> None:
        if self._spool is not None:
            self._spool.finish()
            self._move()

    def _writable(self) -> None:
        assert self._fifo is not None
        self._blocked = False
        self._move()
        if not self._blocked and self._fifo is not None:
            self._loop.remove_writer(self._fifo)

    def _move(self) -> None:
        spool, fifo = self._spool, self._fifo
        if spool is None or fifo is None or self._blocked:
            return
        before = spool.position
        if not spool.move_to(fifo):
            self._blocked = True
            self._loop.add_writer(fifo, self._writable)
        elif spool.ended:
            self._total = spool.end
            self._close_spool()
            self._only_read()
            return
        if spool.position > before and not self._telling and self._limit - self._told >= WINDOW_BYTES // 4:
            self._tell()

    @property
    def _limit(self) -> int:
        return self._spool.position + WINDOW_BYTES if self._spool is not None else 0

    def _tell(self) -> None:
        self._telling = False
        if self._send is None:
            return
        if self._total is not None:
            self._send(Window(self.stream, self._total + 1, self._total + 1))
        elif self._spool is not None:
            self._told = self._limit
            self._send(Window(self.stream, self._spool.end + self._spool.ended, self._told))

    def _meta(self) -> dict[str, Any]:
        return {} if self._total is None else {"total": self._total}

    def _take(self, fds: list[int], meta: dict[str, Any]) -> None:
        if "total" in meta:
            self._total = meta["total"]
            self._fifo = fds[0]
        else:
            super()._take(fds, meta)


class Discard(Relay):
    """An output whose FIFO is gone, and so is whoever could read it: taken and thrown away, so that its process goes on
    and its end is told."""

    _taken = 0

    def connected(self, send: Send) -> None:
        self._send = send
        send(Window(self.stream, self._taken, self._taken + WINDOW_BYTES))

    def on_frame(self, frame: Data | Window) -> None:
        if isinstance(frame, Data) and self._send is not None:
            self._taken = max(self._taken, frame.offset + len(frame.data) + frame.end)
            self.connected(self._send)

    def machine_ended(self) -> None:
        """Nothing is held."""

    def _meta(self) -> dict[str, Any]:
        return {}


class InputRelay(Relay):
    """From the FIFO to the agent. Ends when :meth:`close_writer` has been called and all writers have closed."""

    _held_open = True
    _sent = 0
    _end_sent = False
    _limit: int | None = None
    """What the agent takes; None until it has said it on this connection."""

    def connected(self, send: Send) -> None:
        self._send = send
        self._limit = None  # the agent says first what it has
        if self._fifo is not None:
            self._loop.remove_reader(self._fifo)

    def on_frame(self, frame: Data | Window) -> None:
        spool = self._spool
        if not isinstance(frame, Window) or spool is None:
            return
        if spool.fresh and frame.taken > 0:
            spool.begin_at(frame.taken)
        if self._limit is None:
            self._sent = min(frame.taken, spool.end)
            self._end_sent = False
        self._limit = max(frame.limit, self._limit or 0)
        spool.forget(min(frame.taken, self._sent))
        self._pass_on()

    def ask(self) -> None:
        """Have the agent say what it takes: it has done so when it was connected, which may have been before this relay
        was made. Harmless when the agent does not know the stream yet."""
        if self._send is not None:
            self._send(Data(self.stream, 0, b""))

    def close_writer(self) -> None:
        """The caller wants its input to end when it has closed its own end; harmless to repeat."""
        if self._held_open and self._fifo is not None:
            self._held_open = False
            self._only_read()
            self._pass_on()

    def machine_ended(self) -> None:
        self.close()

    def _pass_on(self) -> None:
        """Send what may be sent, and look for more if there is room."""
        spool = self._spool
        if spool is None or self._fifo is None or self._limit is None or self._send is None:
            return
        while self._sent < min(self._limit, spool.end):
            data = spool.read(self._sent, min(MAX_DATA_BYTES, self._limit - self._sent))
            self._send(Data(self.stream, self._sent, data, False))
            self._sent += len(data)
        if spool.ended:
            self._loop.remove_reader(self._fifo)
            if self._sent == spool.end and not self._end_sent:
                self._end_sent = True
                self._send(Data(self.stream, self._sent, b"", True))
        elif spool.end < self._limit:
            self._loop.add_reader(self._fifo, self._readable)
        else:
            self._loop.remove_reader(self._fifo)

    def _readable(self) -> None:
        spool = self._spool
        assert spool is not None
        assert self._fifo is not None
        assert self._limit is not None
        try:
            if not spool.fill_from(self._fifo, min(MAX_DATA_BYTES * _ROUNDS, self._limit - spool.end)):
                spool.finish()
        except BlockingIOError:
            return
        except OSError as exc:  # no memory: what is in the FIFO stays there
            log.error("input cannot be taken", stream=self.stream, error=exc.strerror)
            self._loop.remove_reader(self._fifo)
            return
        self._pass_on()

    def _meta(self) -> dict[str, Any]:
        return {} if self._held_open else {"closed": True}

    def _take(self, fds: list[int], meta: dict[str, Any]) -> None:
        super()._take(fds, meta)
        self._held_open = not meta.get("closed")
