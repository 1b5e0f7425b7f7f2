"""The streams of this agent and the connection they go over: who gets which frame, and what a new worker is told.

Lives as long as the agent. Streams come and go with their processes, connections with their workers.
"""

from __future__ import annotations

from kuasar.agent.channel import Channel
from kuasar.agent.protocol import Data, Window
from kuasar.agent.receiver import Receiver
from kuasar.agent.sender import Sender
from kuasar.core.aio import Loop

_BACKLOG_BYTES = 1024 * 1024
"""What may wait for the worker before output has to; answers and events never have to wait behind more than that."""


class Exchange:
    """All streams that go over the agent channel."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self._senders: dict[str, Sender] = {}
        self._receivers: dict[str, Receiver] = {}
        self._channel: Channel | None = None
        self._waiting: dict[str, None] = {}
        """Outputs that had to wait for the channel, the longest first."""
        self._flushing = False

    def connected(self, channel: Channel) -> None:
        """A worker has come (in the place of another one): every stream goes on over ``channel``."""
        self._channel = channel
        channel.on_drained = self._flush
        self._waiting.clear()
        for receiver in self._receivers.values():
            receiver.connected()
        for sender in self._senders.values():
            sender.connected()

    def add(self, stream: Sender | Receiver) -> None:
        """From now on ``stream`` gets its frames."""
        if isinstance(stream, Sender):
            self._senders[stream.stream] = stream
            stream.connected()
        else:
            self._receivers[stream.stream] = stream

    def remove(self, stream: Sender | Receiver) -> None:
        """Harmless when it is not there."""
        if self._senders.get(stream.stream) is stream:
            del self._senders[stream.stream]
        if self._receivers.get(stream.stream) is stream:
            del self._receivers[stream.stream]

    def on_frame(self, frame: Data | Window) -> None:
        """A frame of the worker's. One for a stream that is not there any more is of no interest to anybody."""
        if isinstance(frame, Data):
            receiver = self._receivers.get(frame.stream)
            if receiver is not None:
                receiver.on_data(frame)
        else:
            sender = self._senders.get(frame.stream)
            if sender is not None:
                sender.on_window(frame)

    def send_data(self, frame: Data) -> bool:
        """Send; False if the worker must read first what is on its way to it, or if there is none. Who has waited is
        served before others, so that a few busy streams cannot keep one out."""
        channel = self._channel
        if channel is None or channel.closed:
            return False
        if channel.backlog > _BACKLOG_BYTES or (self._waiting and not self._flushing):
            self._waiting[frame.stream] = None
            return False
        channel.send(frame)
        return True

    def send_window(self, frame: Window) -> None:
        """Send, if there is a worker; the next one is told anyhow."""
        if self._channel is not None and not self._channel.closed:
            self._channel.send(frame)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, {}
        self._flushing = True
        for stream in waiting:
            if (sender := self._senders.get(stream)) is not None:
                sender.flush()
        self._flushing = False
