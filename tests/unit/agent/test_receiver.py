"""An input stream between a sender that the test plays and a real pipe."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from kuasar.agent.protocol import WINDOW_BYTES, Data, Window
from kuasar.agent.receiver import Receiver
from kuasar.core.aio import Loop

STREAM = "c//stdin"


class Rig:
    """A receiver, the process's end of its pipe, and the windows it has sent."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.process, self.sink = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.windows: list[Window] = []
        self.ends = 0
        self.receiver = Receiver(self.loop, STREAM, self.windows.append, self._end)
        self.receiver.start(self.sink)

    def _end(self) -> None:
        self.ends += 1
        os.close(self.sink)

    def data(self, offset: int, data: bytes, end: bool = False) -> None:
        self.receiver.on_data(Data(STREAM, offset, data, end))

    def read(self, size: int) -> bytes:
        """As the process does: ``size`` bytes, or what there is before the end."""

        async def all_of_it() -> bytes:
            deadline = time.monotonic() + 10
            data = b""
            while len(data) < size:
                assert time.monotonic() < deadline
                with suppress(BlockingIOError):
                    chunk = os.read(self.process, size - len(data))
                    if not chunk:
                        break
                    data += chunk
                await self.loop.sleep(0)
            return data

        return self.loop.run(all_of_it())

    def close(self) -> None:
        self.receiver.stop()
        for fd in (self.process, self.sink):
            with suppress(OSError):
                os.close(fd)
        self.loop.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def test_the_first_window_comes_with_the_start(rig: Rig) -> None:
    assert rig.windows == [Window(STREAM, 0, WINDOW_BYTES)]


def test_bytes_go_through_once_however_often_they_come(rig: Rig) -> None:
    rig.data(0, b"hello ")
    rig.data(0, b"hello wor")
    rig.data(3, b"lo ")
    rig.data(9, b"ld", end=True)
    assert rig.read(100) == b"hello world"
    assert rig.windows[-1].taken == 12
    assert rig.ends == 1


def test_a_gap_and_what_is_beyond_the_limit_are_dropped(rig: Rig) -> None:
    rig.data(1, b"gap")
    rig.data(0, bytes(WINDOW_BYTES + 1))
    rig.data(0, b"right", end=True)
    assert rig.read(100) == b"right"


def test_a_process_that_does_not_read_lets_the_sender_wait(rig: Rig) -> None:
    sent = 0
    while sent + 65536 <= rig.windows[-1].limit:
        rig.data(sent, bytes(65536))
        sent += 65536
    held = sent
    assert held <= WINDOW_BYTES + 65536  # what the pipe took gave way to more
    assert len(rig.read(held)) == held
    assert rig.windows[-1].limit > held


def test_a_new_connection_is_told_what_has_come(rig: Rig) -> None:
    rig.data(0, b"hello")
    rig.receiver.connected()
    assert rig.windows[-1] == Window(STREAM, 5, 5 + WINDOW_BYTES)


def test_an_end_is_told_again(rig: Rig) -> None:
    rig.data(0, b"", end=True)
    rig.windows.clear()
    rig.receiver.connected()
    rig.data(0, b"", end=True)
    assert [window.taken for window in rig.windows] == [1, 1]
    assert rig.ends == 1


def test_what_a_process_does_not_want_is_thrown_away(rig: Rig) -> None:
    os.close(rig.process)
    sent = 0
    while sent < 4 * WINDOW_BYTES:
        rig.data(sent, bytes(65536))
        sent += 65536
        assert rig.windows[-1].limit >= sent + 65536  # the sender never waits
    rig.data(sent, b"", end=True)
    assert rig.ends == 1


def test_finish_ends_with_what_has_come(rig: Rig) -> None:
    rig.data(0, b"so far")
    rig.receiver.finish()
    rig.receiver.finish()
    rig.data(6, b"too late")
    assert rig.read(100) == b"so far"
    assert rig.ends == 1
