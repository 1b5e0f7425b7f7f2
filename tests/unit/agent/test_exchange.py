"""Which stream gets which frame, and who may send when the channel is full."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from kuasar.agent.channel import Channel
from kuasar.agent.exchange import Exchange
from kuasar.agent.protocol import WINDOW_BYTES, Data, Frame, FrameReader, Window
from kuasar.agent.receiver import Receiver
from kuasar.agent.sender import Sender
from kuasar.core.aio import Loop

MANY = 12
"""Streams whose windows together are far more than the channel lets wait."""


class Rig:
    """An exchange whose worker is played by the test, on a real socket."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.exchange = Exchange(self.loop)
        self.fds: list[int] = []
        self.senders: list[Sender] = []
        self.worker: socket.socket
        self.channel: Channel
        self._reader = FrameReader()

    def connect(self) -> None:
        ours, self.worker = socket.socketpair()
        self.worker.setblocking(False)
        self._reader = FrameReader()
        self.channel = Channel(self.loop, ours, self._on_frame, lambda _: None)
        self.exchange.connected(self.channel)

    def _on_frame(self, frame: Frame) -> None:
        assert isinstance(frame, Data | Window)
        self.exchange.on_frame(frame)

    def busy(self, name: str) -> Sender:
        """A stream with a full ring."""
        source, process = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.fds += [source, process]
        sender = Sender(self.loop, name, self.exchange.send_data)
        self.exchange.add(sender)
        sender.start(source)

        def filled() -> bool:
            try:
                os.write(process, bytes(65536))
            except BlockingIOError:
                return sender.count == WINDOW_BYTES
            return False

        self.until(filled)
        self.senders.append(sender)
        return sender

    def receive(self) -> list[Frame]:
        """What has arrived at the worker."""
        try:
            return list(self._reader.feed(self.worker.recv(1 << 20)))
        except BlockingIOError:
            return []

    def until(self, condition: Callable[[], bool]) -> None:
        async def wait() -> None:
            deadline = time.monotonic() + 10
            while not condition():
                assert time.monotonic() < deadline
                await self.loop.sleep(0)

        self.loop.run(wait())

    def close(self) -> None:
        for sender in self.senders:
            sender.stop()
            self.exchange.remove(sender)
        self.channel.close()
        self.worker.close()
        for fd in self.fds:
            os.close(fd)
        self.loop.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    made.connect()
    yield made
    made.close()


def test_a_new_stream_asks_for_its_window(rig: Rig) -> None:
    rig.busy("a")
    assert rig.receive() == [Data("a", 0, b"")]


def test_a_worker_that_does_not_read_holds_up_little(rig: Rig) -> None:
    for number in range(MANY):
        rig.busy(f"s{number}")
    for number in range(MANY):
        rig.exchange.on_frame(Window(f"s{number}", 0, 1 << 40))
    assert rig.channel.backlog <= (1 << 20) + 65536 + 100


def test_no_stream_is_kept_out_by_busy_ones(rig: Rig) -> None:
    """All have more to send than fits; the first ones have always more, and get new windows all the time."""
    for number in range(MANY):
        rig.busy(f"s{number}")
    for number in range(MANY):
        rig.exchange.on_frame(Window(f"s{number}", 0, 1 << 40))
    seen: dict[str, int] = {}

    def all_seen() -> bool:
        for process in rig.fds[1::2][: MANY - 2]:
            with suppress(BlockingIOError):
                os.write(process, bytes(65536))
        for frame in rig.receive():
            if isinstance(frame, Data) and frame.data:
                seen[frame.stream] = frame.offset + len(frame.data)
                rig.exchange.on_frame(Window(frame.stream, seen[frame.stream], 1 << 40))
        return len(seen) == MANY and min(seen.values()) >= WINDOW_BYTES

    rig.until(all_seen)


def test_frames_for_streams_that_are_not_there_are_nobodys(rig: Rig) -> None:
    rig.exchange.on_frame(Window("gone", 1, 1))
    rig.exchange.on_frame(Data("gone", 0, b"x"))
    assert rig.receive() == []


def test_a_new_worker_hears_of_every_stream(rig: Rig) -> None:
    process, sink = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    rig.fds += [process, sink]
    receiver = Receiver(rig.loop, "in", rig.exchange.send_window, lambda: None)
    rig.exchange.add(receiver)
    receiver.start(sink)
    rig.busy("out")
    rig.exchange.on_frame(Data("in", 0, b"hello"))
    rig.channel.close()
    rig.worker.close()
    rig.connect()
    assert rig.receive() == [Window("in", 5, 5 + WINDOW_BYTES), Data("out", 0, b"")]
    receiver.stop()


def test_without_a_worker_nothing_is_sent(rig: Rig) -> None:
    rig.channel.close()
    assert not rig.exchange.send_data(Data("a", 0, b""))
    rig.exchange.send_window(Window("a", 0, 0))
