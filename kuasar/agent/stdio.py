"""Standard streams of container processes: between the process and the FIFOs that the caller has made.

Three kinds, one interface (:class:`Streams`):

- :class:`DirectStreams`, for a container's init: it gets the FIFOs themselves, so its bytes are copied by nobody. The
  agent holds the opposite end of each until the container is deleted: a caller that goes away and comes back (a
  restart of containerd) neither breaks its pipes nor ends its input, and what it has written last waits to be read.
- :class:`PipedStreams`, for an exec: output goes through a pipe of the agent's, because a process that the exec left
  behind may hold it open for ever; after the exit what is there is drained, for at most a bounded time.
- :class:`TerminalStreams`: the agent copies between the terminal's master and the FIFOs.

A fourth kind is for a caller whose FIFOs the agent cannot open, because it is in a machine of its own: its streams go
over the agent channel (``agent/remote.py``).

An empty path is /dev/null. A FIFO that nobody reads never blocks the agent, only its process.
"""

from __future__ import annotations

import fcntl
import os
import struct
import termios
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass

from kuasar.agent.drivers.base import ProcessStdio
from kuasar.agent.protocol import STREAM
from kuasar.agent.relay import CopyPump, Pump, SplicePump
from kuasar.core import log
from kuasar.core.aio import Loop
from kuasar.core.errors import DeadlineExceeded, InvalidArgument
from kuasar.core.fifo import check_path, open_fifo

_FIELDS = ("stdin", "stdout", "stderr")
DRAIN_SECONDS = 2.0
"""How long output is waited for that a process left behind may still hold back."""


@dataclass(frozen=True)
class StdioPaths:
    """What the caller asked for."""

    terminal: bool
    stdin: str
    stdout: str
    stderr: str

    def __post_init__(self) -> None:
        streams = [field for field in _FIELDS if getattr(self, field) == STREAM]
        for field in _FIELDS:
            path = getattr(self, field)
            if streams and path not in ("", STREAM):
                raise InvalidArgument(f"{field}: {path!r} is no stream, but {streams[0]} is", field=field)
            if not streams:
                check_path(path, field)

    @property
    def remote(self) -> bool:
        """Whether they are streams of the agent channel."""
        return STREAM in (self.stdin, self.stdout, self.stderr)


class Streams(ABC):
    """The streams of one process. Made before it, closed after it; owns every descriptor it opens."""

    def __init__(self, loop: Loop, paths: StdioPaths) -> None:
        self._loop = loop
        self.paths = paths
        self._theirs: list[int] = []
        """For the process; closed here as soon as it has them."""
        self._ours: list[int] = []
        self._stdin_hold: int | None = None

    @abstractmethod
    def open(self) -> ProcessStdio:
        """Open everything and give what the driver hands to the process."""

    def started(self, console: int | None) -> None:
        """The process has its descriptors; ``console``: the terminal's master, which is ours from now on."""
        _close_all(self._theirs)

    async def drain(self, seconds: float | None = DRAIN_SECONDS) -> None:
        """After the exit: returns when all output has been handed over, or when output has been held open for
        ``seconds`` (None: however long it takes)."""
        await _drain(self._loop, self._output_pumps(), seconds)

    def counts(self) -> dict[str, int]:
        """What is known of how much the process has written: ``stdout_bytes``, ``stderr_bytes``."""
        return {}

    def _output_pumps(self) -> list[Pump]:
        return []

    def close_stdin(self) -> None:
        """No input but what is on its way already; the process sees the end when the caller closes too."""
        if self._stdin_hold is not None:
            self._ours.remove(self._stdin_hold)
            os.close(self._stdin_hold)
            self._stdin_hold = None

    def resize(self, width: int, height: int) -> None:
        """Resize the terminal. Raises :class:`InvalidArgument` without one."""
        raise InvalidArgument("resize: the process has no terminal", field="terminal")

    def release_process(self) -> None:
        """The process is dead: free what is of no more use to anybody."""
        self.close_stdin()

    def close(self) -> None:
        """Close everything; harmless to repeat."""
        self._stdin_hold = None
        _close_all(self._theirs)
        _close_all(self._ours)

    def _open_stdin(self) -> int | None:
        if not self.paths.stdin:
            return None
        # Opened both ways first, because opening the writing end of a FIFO without a reader fails.
        both = open_fifo(self.paths.stdin, os.O_RDWR, "stdin")
        try:
            reader = open_fifo(self.paths.stdin, os.O_RDONLY, "stdin")
            self._theirs.append(reader)
            os.set_blocking(reader, True)
            self._stdin_hold = open_fifo(self.paths.stdin, os.O_WRONLY, "stdin")
            self._ours.append(self._stdin_hold)
        finally:
            os.close(both)
        return reader


class DirectStreams(Streams):
    """The FIFOs themselves, the opposite ends held."""

    def open(self) -> ProcessStdio:
        return ProcessStdio(
            terminal=False,
            stdin=self._open_stdin(),
            stdout=self._open_output(self.paths.stdout, "stdout"),
            stderr=self._open_output(self.paths.stderr, "stderr"),
        )

    def _open_output(self, path: str, field: str) -> int | None:
        if not path:
            return None
        # A reader of ours, which never reads: the process gets no SIGPIPE and its last words stay in the FIFO.
        self._ours.append(open_fifo(path, os.O_RDONLY, field))
        writer = open_fifo(path, os.O_WRONLY, field)
        self._theirs.append(writer)
        os.set_blocking(writer, True)
        return writer


class PipedStreams(Streams):
    """Output through pipes of the agent's, drained within bounds."""

    def __init__(self, loop: Loop, paths: StdioPaths) -> None:
        super().__init__(loop, paths)
        self._pumps: dict[str, Pump] = {}

    def open(self) -> ProcessStdio:
        return ProcessStdio(
            terminal=False,
            stdin=self._open_stdin(),
            stdout=self._open_output(self.paths.stdout, "stdout"),
            stderr=self._open_output(self.paths.stderr, "stderr"),
        )

    def _open_output(self, path: str, field: str) -> int | None:
        if not path:
            return None
        # Open both ways: it breaks only when we close it, whether somebody reads now or not.
        sink = open_fifo(path, os.O_RDWR, field)
        self._ours.append(sink)
        source, writer = os.pipe2(os.O_CLOEXEC)
        self._ours.append(source)
        self._theirs.append(writer)
        os.set_blocking(source, False)
        self._pumps[field] = SplicePump(self._loop, source, sink)
        return writer

    def counts(self) -> dict[str, int]:
        return {f"{field}_bytes": pump.moved for field, pump in self._pumps.items()}

    def _output_pumps(self) -> list[Pump]:
        return list(self._pumps.values())

    def release_process(self) -> None:
        self.close()

    def close(self) -> None:
        for pump in self._pumps.values():
            pump.stop()
        super().close()


class TerminalStreams(Streams):
    """Between the terminal's master and the FIFOs."""

    def __init__(self, loop: Loop, paths: StdioPaths) -> None:
        super().__init__(loop, paths)
        self._master: int | None = None
        self._sink: int | None = None
        self._source: int | None = None
        self._output: Pump | None = None
        self._input: Pump | None = None

    def open(self) -> ProcessStdio:
        if self.paths.stdout:
            self._sink = open_fifo(self.paths.stdout, os.O_RDWR, "stdout")
            self._ours.append(self._sink)
        if self.paths.stdin:
            self._source = open_fifo(self.paths.stdin, os.O_RDWR, "stdin")
            self._ours.append(self._source)
        return ProcessStdio(terminal=True, stdin=None, stdout=None, stderr=None)

    def started(self, console: int | None) -> None:
        assert console is not None, "a driver that has terminals gives their master back"
        self._master = console
        self._ours.append(console)
        os.set_blocking(console, False)
        if self._sink is None:
            self._sink = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            self._ours.append(self._sink)
        self._output = CopyPump(self._loop, console, self._sink)
        if self._source is not None:
            self._input = CopyPump(self._loop, self._source, console)

    def counts(self) -> dict[str, int]:
        return {"stdout_bytes": self._output.moved} if self._output is not None and self.paths.stdout else {}

    def _output_pumps(self) -> list[Pump]:
        return [self._output] if self._output is not None else []

    def close_stdin(self) -> None:
        """Our own writing end goes; the pump ends when the caller has closed its end and all is read."""
        if self._source is None or self._input is None or self._master is None:
            return
        reader = open_fifo(self.paths.stdin, os.O_RDONLY, "stdin")
        self._input.stop()
        self._ours.remove(self._source)
        os.close(self._source)
        self._ours.append(reader)
        self._source = None
        self._input = CopyPump(self._loop, reader, self._master)

    def resize(self, width: int, height: int) -> None:
        resize_terminal(self._master, width, height)

    def release_process(self) -> None:
        self.close()

    def close(self) -> None:
        for pump in (self._output, self._input):
            if pump is not None:
                pump.stop()
        self._master = None
        super().close()


def make_streams(loop: Loop, paths: StdioPaths, is_init: bool) -> Streams:
    """The right kind for a process whose FIFOs can be opened here."""
    if paths.terminal:
        return TerminalStreams(loop, paths)
    return DirectStreams(loop, paths) if is_init else PipedStreams(loop, paths)


def resize_terminal(master: int | None, width: int, height: int) -> None:
    """Set the size. Raises :class:`InvalidArgument` for one that is none, or where there is no master yet."""
    if master is None:
        raise InvalidArgument("resize: the process has not been started", field="exec_id")
    for value, field in ((width, "width"), (height, "height")):
        if not 0 <= value <= 65535:
            raise InvalidArgument(f"{field}: {value} is no size of a terminal", field=field)
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))


async def _drain(loop: Loop, pumps: list[Pump], seconds: float | None) -> None:
    deadline = None if seconds is None else time.monotonic() + seconds
    try:
        for pump in pumps:
            await loop.wait_for(pump.done, deadline, "draining output")
    except DeadlineExceeded:
        log.info("output is still held open after the exit; what comes later is dropped")


def _close_all(fds: list[int]) -> None:
    while fds:
        with suppress(OSError):
            os.close(fds.pop())
