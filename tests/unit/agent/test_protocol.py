"""Frames: what is encoded comes back however the stream is cut, and no bytes break the decoder."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kuasar.agent import protocol
from kuasar.agent.protocol import (
    MAX_DATA_BYTES,
    MAX_OFFSET,
    Ack,
    Data,
    Event,
    Frame,
    FrameReader,
    Hello,
    MalformedFrame,
    Reply,
    Request,
    Window,
    decode,
    encode,
    encode_data,
)

NUMBERS = st.integers(min_value=0, max_value=2**63 - 1)
OFFSETS = st.integers(min_value=0, max_value=MAX_OFFSET)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT, lambda inner: st.lists(inner, max_size=4), max_leaves=8
)
BODIES = st.dictionaries(TEXT, VALUES, max_size=5)
STRINGS = st.lists(TEXT, max_size=4)
TIMEOUTS = st.none() | st.floats(min_value=0, allow_infinity=False, allow_nan=False)
FRAMES: st.SearchStrategy[Frame] = st.one_of(
    st.builds(Hello, NUMBERS, TEXT, NUMBERS, TEXT, STRINGS, STRINGS),
    st.builds(Request, NUMBERS, TEXT, TEXT, BODIES, TIMEOUTS, st.none() | TEXT),
    st.builds(lambda n, body, spans: Reply(n, body=body, spans=spans), NUMBERS, BODIES, st.none() | BODIES),
    st.builds(lambda n, error: Reply(n, error=error), NUMBERS, BODIES),
    st.builds(Event, NUMBERS, TEXT, BODIES),
    st.builds(Ack, STRINGS, NUMBERS),
    st.builds(Data, TEXT, OFFSETS, st.binary(max_size=300), st.booleans()),
    st.builds(Window, TEXT, OFFSETS, OFFSETS),
)


@given(st.lists(FRAMES, min_size=1, max_size=5), st.integers(min_value=1, max_value=50))
@settings(max_examples=80)
def test_frames_survive_any_cut_of_the_stream(frames: list[Frame], step: int) -> None:
    stream = b"".join(map(encode, frames))
    reader = FrameReader()
    seen = [frame for at in range(0, len(stream), step) for frame in reader.feed(stream[at : at + step])]
    assert seen == frames


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_random_bytes_are_a_frame_or_malformed(data: bytes) -> None:
    try:
        frame = decode(data)
    except MalformedFrame as exc:
        assert str(exc)
    else:
        assert decode(encode(frame)[4:]) == frame


@given(FRAMES, st.data())
@settings(max_examples=150)
def test_a_damaged_frame_is_a_frame_or_malformed(frame: Frame, data: st.DataObject) -> None:
    raw = bytearray(encode(frame)[4:])
    at = data.draw(st.integers(min_value=0, max_value=len(raw) - 1))
    raw[at] ^= data.draw(st.integers(min_value=1, max_value=255))
    try:
        decode(raw)
    except MalformedFrame as exc:
        assert str(exc)


REQUEST: dict[str, Any] = {"k": "request", "n": 1, "key": "", "op": "info", "body": {}, "timeout": None}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": "nonsense"}, "unknown kind 'nonsense'"),
        ({"k": 7}, "unknown kind 7"),
        ({"n": -1}, "n is negative"),
        ({"n": True}, "n is missing or wrong: bool"),
        ({"n": 1.0}, "n is missing or wrong: float"),
        ({"key": None}, "key is missing or wrong: NoneType"),
        ({"op": b"info"}, "op is missing or wrong: bytes"),
        ({"body": []}, "body is missing or wrong: list"),
        ({"body": {b"a": 1}}, "keys of body must be strings"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"timeout": -0.5}, "timeout is -0.5"),
        ({"extra": 1}, "unknown keys extra"),
    ],
)
def test_what_is_wrong_with_a_request_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(MalformedFrame, match=words):
        decode(msgpack.packb(REQUEST | change))


DATA: dict[str, Any] = {"k": "data", "stream": "c//stdout", "offset": 0, "data": b"x", "end": False}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stream": 7}, "stream is missing or wrong: int"),
        ({"offset": -1}, "offset is negative"),
        ({"offset": MAX_OFFSET + 1}, "no stream is longer"),
        ({"data": "text"}, "data is missing or wrong: str"),
        ({"data": None}, "data is missing or wrong: NoneType"),
        ({"data": bytes(MAX_DATA_BYTES + 1)}, "65537 bytes, at most 65536"),
        ({"end": 1}, "end is missing or wrong: int"),
        ({"k": "window"}, "taken is missing"),
    ],
)
def test_what_is_wrong_with_data_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(MalformedFrame, match=words):
        decode(msgpack.packb(DATA | change))


def test_the_bytes_of_a_data_frame_are_not_copied() -> None:
    data = memoryview(bytes(MAX_DATA_BYTES))
    head, body = encode_data(Data("c//stdout", 2**40, data, True))
    assert body is data
    assert decode(head[4:] + body) == Data("c//stdout", 2**40, bytes(data), True)


def test_too_much_data_is_not_encoded() -> None:
    with pytest.raises(MalformedFrame, match="at most 65536"):
        encode(Data("c//stdout", 0, bytes(MAX_DATA_BYTES + 1)))


@pytest.mark.parametrize("parts", [{}, {"body": {}, "error": {}}])
def test_a_reply_is_either_body_or_error(parts: dict[str, Any]) -> None:
    with pytest.raises(MalformedFrame, match="exactly one"):
        decode(msgpack.packb({"k": "reply", "n": 1, **parts}))


def test_an_announced_length_above_the_limit_is_refused_before_it_arrives() -> None:
    header = (protocol.MAX_FRAME_BYTES + 1).to_bytes(4, "big")
    with pytest.raises(MalformedFrame, match="at most"):
        list(FrameReader().feed(header))


def test_a_frame_above_the_limit_is_not_encoded() -> None:
    with pytest.raises(MalformedFrame, match="at most"):
        encode(Event(1, "x", {"data": "a" * protocol.MAX_FRAME_BYTES}))


@pytest.mark.parametrize("value", ["\ud800", object(), 2**70])
def test_a_value_that_msgpack_has_not_is_not_encoded(value: object) -> None:
    with pytest.raises(MalformedFrame, match="cannot be encoded"):
        encode(Event(1, "x", {"value": value}))
