"""The ring against the plainest of all models: a bytes object and two numbers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kuasar.agent.ring import Ring

STEPS = st.lists(st.tuples(st.sampled_from(["fill", "release", "look"]), st.integers(0, 40)), max_size=60)


@given(st.integers(1, 23), STEPS)
@settings(max_examples=200)
def test_what_goes_in_comes_out_at_its_offset(capacity: int, steps: list[tuple[str, int]]) -> None:
    ring = Ring(capacity)
    stream = b""
    for step, number in steps:
        if step == "fill":
            pieces = ring.space(number)
            data = bytes((len(stream) + i) % 251 for i in range(sum(map(len, pieces))))
            at = 0
            for piece in pieces:
                piece[:] = data[at : at + len(piece)]
                at += len(piece)
            assert at == min(number, ring.room)
            ring.filled(at)
            stream += data
        elif step == "release":
            ring.release(ring.start + number)
        else:
            offset = ring.start + min(number, ring.end - ring.start)
            seen = b""
            while view := ring.view(offset + len(seen), 7):
                seen += bytes(view)
            assert seen == stream[offset:]
        assert ring.end == len(stream)
        assert ring.end - ring.start + ring.room == capacity


def test_a_stream_of_little_bytes_stays_at_the_beginning_of_the_memory() -> None:
    ring = Ring(100)
    for offset in range(0, 1000, 10):
        (space,) = ring.space(10)
        space[:] = b"0123456789"
        ring.filled(10)
        assert bytes(ring.view(offset, 10)) == b"0123456789"
        ring.release(ring.end)
        assert ring.space(100)[0].nbytes == 100  # in one piece, thus from the beginning


def test_what_is_not_there_is_an_error() -> None:
    ring = Ring(10)
    with pytest.raises(ValueError, match="do not fit"):
        ring.filled(11)
    with pytest.raises(ValueError, match="not between 0 and 0"):
        ring.view(1, 1)
