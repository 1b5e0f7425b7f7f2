"""Standard streams that go over the agent channel, for a worker whose FIFOs the agent cannot open.

The process has pipes or a terminal of the agent's; between them and the channel stand a :class:`Sender` for each output
and a :class:`Receiver` for the input. An output has been handed over when the worker has acknowledged its end.
"""

from __future__ import annotations

import os
import time

from kuasar.agent.drivers.base import ProcessStdio
from kuasar.agent.exchange import Exchange
from kuasar.agent.receiver import Receiver
from kuasar.agent.relay import CopyPump
from kuasar.agent.sender import Sender
from kuasar.agent.stdio import DRAIN_SECONDS, StdioPaths, Streams, resize_terminal
from kuasar.core import log
from kuasar.core.errors import DeadlineExceeded

_OUTPUTS = ("stdout", "stderr")


class _Remote(Streams):
    """What pipes and terminals have in common. ``process``: ``<container id>/<exec id>``, as in the streams' ids."""

    def __init__(self, exchange: Exchange, paths: StdioPaths, process: str) -> None:
        super().__init__(exchange.loop, paths)
        self._exchange = exchange
        self._process = process
        self._outputs: dict[str, Sender] = {}
        self._input: Receiver | None = None

    def _make_streams(self, *outputs: str) -> None:
        for field in outputs:
            if getattr(self.paths, field):
                sender = Sender(self._loop, f"{self._process}/{field}", self._exchange.send_data)
                self._outputs[field] = sender
                self._exchange.add(sender)
        if self.paths.stdin:
            stream = f"{self._process}/stdin"
            self._input = Receiver(self._loop, stream, self._exchange.send_window, self._input_ended)
            self._exchange.add(self._input)

    def _input_ended(self) -> None:
        """All input has been written to the process."""

    async def drain(self, seconds: float | None = DRAIN_SECONDS) -> None:
        """After the exit: until the output has ended, for a bounded time, and until the worker has all of it, however
        long that takes (no worker, nobody to tell the exit)."""
        deadline = None if seconds is None else time.monotonic() + seconds
        for sender in self._outputs.values():
            sender.hurry()
        for sender in self._outputs.values():
            try:
                await self._loop.wait_for(sender.ended, deadline, "draining output")
            except DeadlineExceeded:
                log.info("output is still held open after the exit; what comes later is dropped", stream=sender.stream)
                sender.cut()
        for sender in self._outputs.values():
            await sender.acknowledged

    def counts(self) -> dict[str, int]:
        return {f"{field}_bytes": self._outputs[field].count if field in self._outputs else 0 for field in _OUTPUTS}

    def close_stdin(self) -> None:
        """The input ends with what has come so far; a worker ends it on the stream instead."""
        if self._input is not None:
            self._input.finish()

    def release_process(self) -> None:
        self.close()

    def close(self) -> None:
        for sender in self._outputs.values():
            sender.stop()
            self._exchange.remove(sender)
        if self._input is not None:
            self._input.stop()
            self._exchange.remove(self._input)
        super().close()


class RemoteStreams(_Remote):
    """Pipes of the agent's."""

    def __init__(self, exchange: Exchange, paths: StdioPaths, process: str) -> None:
        super().__init__(exchange, paths, process)
        self._sources: dict[str, int] = {}
        self._sink: int | None = None

    def open(self) -> ProcessStdio:
        self._make_streams(*_OUTPUTS)
        outputs = {field: self._open_output(field) if field in self._outputs else None for field in _OUTPUTS}
        return ProcessStdio(False, self._open_input(), outputs["stdout"], outputs["stderr"])

    def _open_output(self, field: str) -> int:
        source, writer = os.pipe2(os.O_CLOEXEC)
        self._ours.append(source)
        self._theirs.append(writer)
        os.set_blocking(source, False)
        self._sources[field] = source
        return writer

    def _open_input(self) -> int | None:
        if self._input is None:
            return None
        reader, self._sink = os.pipe2(os.O_CLOEXEC)
        self._theirs.append(reader)
        self._ours.append(self._sink)
        os.set_blocking(self._sink, False)
        return reader

    def started(self, console: int | None) -> None:
        super().started(console)
        for field, source in self._sources.items():
            self._outputs[field].start(source)
        if self._input is not None and self._sink is not None:
            self._input.start(self._sink)

    def _input_ended(self) -> None:
        if self._sink is not None:
            self._ours.remove(self._sink)
            os.close(self._sink)
            self._sink = None


class RemoteTerminal(_Remote):
    """A terminal, whose output is one stream, ``stdout``."""

    def __init__(self, exchange: Exchange, paths: StdioPaths, process: str) -> None:
        super().__init__(exchange, paths, process)
        self._master: int | None = None
        self._discard: CopyPump | None = None

    def open(self) -> ProcessStdio:
        self._make_streams("stdout")
        return ProcessStdio(terminal=True, stdin=None, stdout=None, stderr=None)

    def started(self, console: int | None) -> None:
        assert console is not None, "a driver that has terminals gives their master back"
        self._master = console
        self._ours.append(console)
        os.set_blocking(console, False)
        if "stdout" in self._outputs:
            self._outputs["stdout"].start(console)
        else:
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            self._ours.append(null)
            self._discard = CopyPump(self._loop, console, null)
        if self._input is not None:
            self._input.start(console)

    def resize(self, width: int, height: int) -> None:
        resize_terminal(self._master, width, height)

    def close(self) -> None:
        if self._discard is not None:
            self._discard.stop()
        self._master = None
        super().close()


def make_remote_streams(exchange: Exchange, paths: StdioPaths, process: str) -> Streams:
    """The right kind for a process, named ``<container id>/<exec id>``."""
    return RemoteTerminal(exchange, paths, process) if paths.terminal else RemoteStreams(exchange, paths, process)
