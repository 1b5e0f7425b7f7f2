"""An output stream between a real pipe and a receiver that the test plays."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kuasar.agent.protocol import LAST_BYTES, MAX_DATA_BYTES, WINDOW_BYTES, Data, Window
from kuasar.agent.sender import Sender
from kuasar.core.aio import Loop

FAR = 1 << 40


class Rig:
    """A sender, the process's end of its pipe, and everything it has sent."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.source, self.process = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.frames: list[Data] = []
        self.full = False
        self.sender = Sender(self.loop, "c//stdout", self._send)
        self.sender.start(self.source)

    def _send(self, frame: Data) -> bool:
        if not self.full:
            self.frames.append(Data(frame.stream, frame.offset, bytes(frame.data), frame.end))
        return not self.full

    def window(self, taken: int, limit: int) -> None:
        self.sender.on_window(Window("c//stdout", taken, limit))

    def write(self, size: int, start: int = 0) -> int:
        """As a process does; gives how much went in."""
        done = 0
        while done < size:
            try:
                done += os.write(self.process, pattern(start + done, min(4096, size - done)))
            except BlockingIOError:
                before = self.sender.count
                self.turn()
                if self.sender.count == before:
                    break
        self.turn()
        return done

    def end(self) -> None:
        os.close(self.process)
        self.process = -1
        self.turn()

    def turn(self) -> None:
        self.until(lambda: True)

    def until(self, condition: Callable[[], bool]) -> None:
        """Some turns of the loop, and more until the condition holds."""

        async def some() -> None:
            deadline = time.monotonic() + 10
            for _ in range(4):
                await self.loop.sleep(0)
            while not condition():
                assert time.monotonic() < deadline
                await self.loop.sleep(0.001)

        self.loop.run(some())

    @property
    def received(self) -> bytes:
        """What the frames make together; they must follow on each other."""
        data = b""
        for frame in self.frames:
            assert frame.offset <= len(data)
            data = data[: frame.offset] + bytes(frame.data) + data[frame.offset + len(frame.data) :]
        return data

    def close(self) -> None:
        self.sender.stop()
        for fd in (self.source, self.process):
            with suppress(OSError):
                os.close(fd)
        self.loop.close()


def pattern(offset: int, size: int) -> bytes:
    return bytes((offset + i) * 7 % 253 for i in range(size))


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def test_a_question_that_a_full_channel_refused_is_asked_when_there_is_room(rig: Rig) -> None:
    rig.full = True
    rig.sender.connected()
    assert rig.write(5) == 5
    rig.full = False
    rig.sender.flush()
    assert rig.frames == [Data("c//stdout", 0, b"", False)]
    rig.sender.flush()
    assert len(rig.frames) == 1  # once
    rig.window(0, FAR)
    assert rig.received == pattern(0, 5)


def test_nothing_is_sent_before_the_window_and_nothing_beyond_its_limit(rig: Rig) -> None:
    rig.write(1000)
    assert rig.frames == []
    rig.window(0, 300)
    assert rig.received == pattern(0, 300)
    rig.window(300, 650)
    rig.window(300, 200)  # a limit does not come back
    assert rig.received == pattern(0, 650)


def test_a_new_connection_asks_for_its_window_and_goes_on_from_it(rig: Rig) -> None:
    rig.write(1000)
    rig.window(0, FAR)
    rig.frames.clear()
    rig.sender.connected()
    assert rig.frames == [Data("c//stdout", 0, b"")]
    rig.write(50, 1000)
    assert len(rig.frames) == 1  # not before the window
    rig.window(400, FAR)
    assert (rig.frames[1].offset, rig.frames[1].data) == (400, pattern(400, 650))


def test_the_process_stands_still_when_the_ring_is_full(rig: Rig) -> None:
    size = rig.write(1 << 20)
    assert rig.sender.count == WINDOW_BYTES
    assert size <= WINDOW_BYTES + 65536
    rig.window(0, FAR)
    assert rig.write(1, size) == 0  # sent, but not acknowledged
    rig.window(10_000, FAR)
    rig.until(lambda: rig.sender.count == WINDOW_BYTES + 10_000)
    assert rig.received == pattern(0, WINDOW_BYTES + 10_000)


def test_no_frame_is_longer_than_allowed(rig: Rig) -> None:
    rig.write(200_000)
    rig.window(0, FAR)
    assert max(len(frame.data) for frame in rig.frames) == MAX_DATA_BYTES


def test_the_end_comes_once_and_counts_as_one_byte(rig: Rig) -> None:
    rig.window(0, FAR)
    rig.write(10)
    rig.end()
    assert [(frame.offset, frame.end) for frame in rig.frames] == [(0, False), (10, True)]
    rig.window(10, FAR)
    assert not rig.sender.acknowledged.done
    assert len(rig.frames) == 2
    rig.sender.connected()
    rig.window(10, FAR)
    assert rig.frames[-1] == Data("c//stdout", 10, b"", True)
    rig.window(11, 11)
    assert rig.sender.acknowledged.done


def test_the_end_travels_with_the_last_bytes_where_it_is_known(rig: Rig) -> None:
    rig.write(10)
    rig.end()
    rig.window(0, FAR)
    assert rig.frames == [Data("c//stdout", 0, pattern(0, 10), True)]


def test_the_rest_of_a_dead_process_goes_whatever_the_limit_is(rig: Rig) -> None:
    rig.window(0, 0)
    size = rig.write(1 << 20)
    assert rig.frames == []
    rig.end()
    rig.sender.hurry()
    rig.until(lambda: rig.sender.count == WINDOW_BYTES)
    rig.window(WINDOW_BYTES, 0)  # the receiver takes, but its own reader does not
    rig.until(lambda: rig.sender.ended.done)
    assert rig.received == pattern(0, size)
    rig.window(size + 1, 0)
    assert rig.sender.acknowledged.done


def test_a_process_left_behind_cannot_send_without_end(rig: Rig) -> None:
    """It writes on after the exit of the process that counts, and nobody reads."""
    rig.window(0, 0)
    size = rig.write(1 << 20)
    rig.sender.hurry()
    for _ in range(20):
        rig.window(rig.sender.count, 0)
        size += rig.write(1 << 20, size)
    assert rig.sender.count == LAST_BYTES
    rig.sender.cut()
    assert rig.frames[-1].end
    assert len(rig.received) == LAST_BYTES


def test_a_channel_that_is_full_is_tried_again(rig: Rig) -> None:
    rig.window(0, FAR)
    rig.full = True
    rig.write(100)
    rig.end()
    assert rig.frames == []
    rig.full = False
    rig.sender.flush()
    assert rig.frames == [Data("c//stdout", 0, pattern(0, 100), True)]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 90_000)),
        st.tuples(st.just("take"), st.integers(0, 120_000)),
        st.tuples(st.just("reconnect"), st.integers(0, 120_000)),
        st.tuples(st.just("full"), st.integers(0, 1)),
    ),
    max_size=25,
)


@given(STEPS)
@settings(max_examples=40, deadline=None)
def test_whatever_happens_every_byte_arrives_at_its_offset(steps: list[tuple[str, int]]) -> None:
    rig = Rig()
    try:
        written = taken = 0
        rig.window(0, WINDOW_BYTES)
        for step, number in steps:
            if step == "write":
                written += rig.write(number, written)
            elif step == "full":
                rig.full = bool(number)
                rig.sender.flush()
            else:
                taken = min(taken + number, len(rig.received))
                if step == "reconnect":
                    rig.sender.connected()
                rig.window(taken, taken + WINDOW_BYTES)
            rig.turn()
        rig.full = False
        rig.end()
        while not rig.sender.acknowledged.done:
            ended = any(frame.end for frame in rig.frames)
            rig.window(len(rig.received) + ended, len(rig.received) + WINDOW_BYTES)
            rig.turn()
        assert rig.received == pattern(0, written)
    finally:
        rig.close()
