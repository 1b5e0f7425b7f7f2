"""Relays against an agent that the test plays: what they take, what they refuse, and what they let go."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kuasar.agent.protocol import LAST_BYTES, MAX_DATA_BYTES, WINDOW_BYTES, Data, Window
from kuasar.core.aio import Loop
from kuasar.workers.keeping import Keeping
from kuasar.workers.relays import Discard, InputRelay, OutputRelay

STREAM = "c//stdout"


class Rig:
    """A loop, a FIFO with the caller's end open, and the frames that a relay has sent."""

    def __init__(self, directory: Path) -> None:
        self.loop = Loop()
        self.keeping = Keeping(self.loop, None)
        self.path = str(directory / "fifo")
        os.mkfifo(self.path)
        self.frames: list[Data | Window] = []

    def output(self) -> OutputRelay:
        relay = OutputRelay(self.loop, self.keeping, STREAM, "name")
        relay.open(self.path, "stdout")
        relay.connected(self.frames.append)
        return relay

    def input(self) -> InputRelay:
        relay = InputRelay(self.loop, self.keeping, STREAM, "name")
        relay.open(self.path, "stdin")
        relay.connected(self.frames.append)
        return relay

    def until(self, condition: Callable[[], bool]) -> None:
        async def wait() -> None:
            deadline = time.monotonic() + 10
            for _ in range(4):
                await self.loop.sleep(0)
            while not condition():
                assert time.monotonic() < deadline
                await self.loop.sleep(0.001)

        self.loop.run(wait())

    def turn(self) -> None:
        self.until(lambda: True)

    @property
    def window(self) -> Window:
        return [frame for frame in self.frames if isinstance(frame, Window)][-1]

    @property
    def data(self) -> list[Data]:
        return [frame for frame in self.frames if isinstance(frame, Data)]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.loop.close()


@pytest.fixture
def reader(rig: Rig) -> Iterator[int]:
    fd = os.open(rig.path, os.O_RDONLY | os.O_NONBLOCK)
    yield fd
    os.close(fd)


def test_output_is_passed_on_once_and_acknowledged(rig: Rig, reader: int) -> None:
    relay = rig.output()
    assert rig.window == Window(STREAM, 0, WINDOW_BYTES)
    for offset, data in ((0, b"hello "), (0, b"hello wor"), (3, b"lo"), (9, b"ld")):
        relay.on_frame(Data(STREAM, offset, data))
    rig.turn()
    assert os.read(reader, 100) == b"hello world"
    assert rig.window == Window(STREAM, 11, 11 + WINDOW_BYTES)
    relay.close()


def test_frames_that_come_together_are_acknowledged_together(rig: Rig, reader: int) -> None:
    relay = rig.output()
    rig.frames.clear()
    for offset in range(10):
        relay.on_frame(Data(STREAM, offset, b"x"))
    rig.turn()
    assert [frame.taken for frame in rig.frames if isinstance(frame, Window)] == [10]
    relay.close()


def test_a_gap_and_what_is_far_beyond_the_window_are_dropped(rig: Rig, reader: int) -> None:
    relay = rig.output()
    relay.on_frame(Data(STREAM, 0, b"one"))
    relay.on_frame(Data(STREAM, 4, b"gap"))
    offset = 3
    while offset < 2 * (WINDOW_BYTES + LAST_BYTES):  # an agent that keeps to no limit, and nobody reads
        relay.on_frame(Data(STREAM, offset, bytes(MAX_DATA_BYTES)))
        offset += MAX_DATA_BYTES
    rig.turn()
    assert rig.window.taken <= 65536 + WINDOW_BYTES + LAST_BYTES
    assert os.read(reader, 3) == b"one"
    relay.close()


def test_the_end_is_seen_when_everything_has_been_read_not_before(rig: Rig, reader: int) -> None:
    relay = rig.output()
    data = os.urandom(100_000)
    relay.on_frame(Data(STREAM, 0, data[:MAX_DATA_BYTES]))
    relay.on_frame(Data(STREAM, MAX_DATA_BYTES, data[MAX_DATA_BYTES:], True))
    rig.turn()
    assert rig.window.taken == 100_001  # the process may go
    got = b""

    def all_read() -> bool:
        nonlocal got
        try:
            chunk = os.read(reader, 9999)
        except BlockingIOError:
            return False
        got += chunk
        return not chunk

    rig.until(all_read)
    assert got == data
    relay.on_frame(Data(STREAM, 100_000, b"", True))  # the acknowledgement was lost
    rig.turn()
    assert rig.window == Window(STREAM, 100_001, 100_001)
    relay.close()
    relay.close()


def test_what_was_said_before_the_machine_died_is_passed_on(rig: Rig, reader: int) -> None:
    relay = rig.output()
    relay.on_frame(Data(STREAM, 0, b"last words"))
    relay.machine_ended()
    assert os.read(reader, 100) == b"last words"
    assert os.read(reader, 100) == b""
    relay.close()


def test_a_stream_of_which_the_beginning_is_lost_goes_on(rig: Rig, reader: int) -> None:
    relay = rig.output()
    relay.on_frame(Data(STREAM, 10**9, b"the rest", True))
    rig.turn()
    assert os.read(reader, 100) == b"the rest"
    assert rig.window.taken == 10**9 + 9
    relay.close()


def test_input_waits_for_the_window_and_keeps_to_it(rig: Rig) -> None:
    relay = rig.input()
    writer = os.open(rig.path, os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, b"0123456789")
    rig.turn()
    assert rig.frames == []
    relay.on_frame(Window(STREAM, 0, 4))
    rig.until(lambda: bool(rig.data))
    rig.turn()
    assert rig.data == [Data(STREAM, 0, b"0123")]
    relay.on_frame(Window(STREAM, 4, 100))
    rig.until(lambda: len(rig.data) > 1)
    assert rig.data[1] == Data(STREAM, 4, b"456789")
    os.close(writer)
    relay.close()


def test_input_that_comes_while_a_new_connection_has_no_window_waits(rig: Rig) -> None:
    relay = rig.input()
    relay.on_frame(Window(STREAM, 0, 100))
    relay.connected(rig.frames.append)
    writer = os.open(rig.path, os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, b"hello")
    rig.turn()
    assert rig.data == []
    relay.on_frame(Window(STREAM, 0, 100))
    rig.until(lambda: bool(rig.data))
    relay.connected(rig.frames.append)
    relay.on_frame(Window(STREAM, 2, 100))  # the agent got no more than that
    assert rig.data == [Data(STREAM, 0, b"hello"), Data(STREAM, 2, b"llo")]
    os.close(writer)
    relay.close()


def test_input_ends_when_both_sides_have_closed(rig: Rig) -> None:
    relay = rig.input()
    relay.on_frame(Window(STREAM, 0, 100))
    writer = os.open(rig.path, os.O_WRONLY | os.O_NONBLOCK)
    os.close(writer)
    rig.turn()
    assert rig.data == []  # a caller that goes away may come back
    writer = os.open(rig.path, os.O_WRONLY | os.O_NONBLOCK)
    relay.close_writer()
    relay.close_writer()
    os.write(writer, b"end")
    rig.until(lambda: bool(rig.data))
    assert rig.data == [Data(STREAM, 0, b"end")]
    os.close(writer)
    rig.until(lambda: rig.data[-1].end)
    assert rig.data[-1] == Data(STREAM, 3, b"", True)
    relay.on_frame(Window(STREAM, 4, 4))
    assert len(rig.data) == 2
    relay.close()


def test_output_that_nobody_can_read_any_more_is_taken(rig: Rig) -> None:
    relay = Discard(rig.loop, rig.keeping, STREAM, "name")
    relay.connected(rig.frames.append)
    relay.on_frame(Data(STREAM, 0, b"hello"))
    relay.on_frame(Data(STREAM, 5, b"!", True))
    assert rig.window.taken == 7
    relay.close()
