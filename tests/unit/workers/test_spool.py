"""A spool is what its descriptor says, whoever holds it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kuasar.workers.spool import Spool


@pytest.fixture
def spool() -> Iterator[Spool]:
    made = Spool.create()
    yield made
    made.close()
    made.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    yield ends
    for fd in ends:
        with suppress(OSError):
            os.close(fd)


def successor(spool: Spool) -> Spool:
    """What another process makes of a duplicate."""
    return Spool(os.dup(spool.fd))


def facts(spool: Spool) -> tuple[int, int, bool]:
    return spool.position, spool.end, spool.ended


def test_a_successor_sees_what_has_come_and_what_has_been_moved_on(spool: Spool, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    data = os.urandom(100_000)
    spool.write(data)
    assert not spool.move_to(writer)  # a pipe takes less
    assert 0 < spool.position < spool.end
    other = successor(spool)
    assert facts(other) == facts(spool) == (spool.position, 100_000, False)
    got = os.read(reader, 100_000)
    assert other.move_to(writer)
    assert got + os.read(reader, 100_000) == data
    other.finish()
    other.close()
    third = successor(spool)
    assert facts(third) == (100_000, 100_000, True)
    third.close()


def test_the_end_can_be_said_again_and_nothing_comes_after_it(spool: Spool) -> None:
    spool.write(b"all")
    spool.finish()
    spool.finish()
    with pytest.raises(PermissionError):
        spool.write(b"more")


def test_a_stream_whose_beginning_is_unknown(spool: Spool, pipe: tuple[int, int]) -> None:
    assert spool.fresh
    spool.begin_at(10**12)
    other = successor(spool)
    assert facts(other) == (10**12, 10**12, False)
    other.write(b"hello")
    assert other.move_to(pipe[1])
    assert os.read(pipe[0], 100) == b"hello"
    other.close()


def test_what_has_been_moved_on_costs_no_memory(spool: Spool, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    chunk = os.urandom(48 * 1024)
    for _ in range(100):
        spool.write(chunk)
        assert spool.move_to(writer)
        assert os.read(reader, len(chunk)) == chunk
        assert os.fstat(spool.fd).st_blocks * 512 <= 256 * 1024
    assert spool.end == 100 * len(chunk)


def test_bytes_in_the_pipe_stay_whole_when_their_pages_are_given_back(spool: Spool, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    written, got = bytearray(), bytearray()
    for size in (1, 4095, 60_000, 3, 70_000, 65_536, 100_000, 1, 1):
        data = os.urandom(size)
        spool.write(data)
        written += data
        while not spool.move_to(writer):  # always full, and read in odd pieces
            got += os.read(reader, 7777)
    with suppress(BlockingIOError):
        while True:
            got += os.read(reader, 65536)
    assert got == written


def test_input_is_taken_read_and_forgotten(spool: Spool, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, b"0123456789")
    assert spool.fill_from(reader, 4) == 4
    assert spool.fill_from(reader, 100) == 6
    with pytest.raises(BlockingIOError):
        spool.fill_from(reader, 100)
    other = successor(spool)
    assert facts(other) == (10, 10, False)
    assert other.read(3, 100) == b"3456789"
    os.write(writer, b"more")
    os.close(writer)
    assert other.fill_from(reader, 100) == 4
    assert other.fill_from(reader, 100) == 0
    other.forget(14)  # less than a page: nothing happens
    assert other.read(0, 100) == b"0123456789more"
    other.close()


@given(st.lists(st.tuples(st.integers(1, 50_000), st.integers(0, 80_000), st.booleans()), max_size=20))
@settings(max_examples=40, deadline=None)
def test_moving_on_is_exact_whoever_does_it(steps: list[tuple[int, int, bool]]) -> None:
    """Writes, partial reads and changes of hands in any order."""
    spool = Spool.create()
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    written, got = bytearray(), bytearray()
    try:
        for size, taken, hand_over in steps:
            data = bytes((len(written) + i) % 249 for i in range(size))
            spool.write(data)
            written += data
            spool.move_to(writer)
            if taken:
                with suppress(BlockingIOError):
                    got += os.read(reader, taken)
            if hand_over:
                other = successor(spool)
                spool.close()
                spool = other
        while len(got) < len(written):
            spool.move_to(writer)
            got += os.read(reader, 65536)
        assert got == written
    finally:
        spool.close()
        os.close(reader)
        os.close(writer)
