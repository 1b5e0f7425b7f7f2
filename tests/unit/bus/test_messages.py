"""Encoder and total decoder: every message survives the round trip, and no bytes get anything but an answer."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuasar.bus.messages import (
    MAX_MESSAGE_BYTES,
    Event,
    Heartbeat,
    Hello,
    MalformedMessage,
    Message,
    Reply,
    Request,
    Welcome,
    decode,
    encode,
    routing_id,
    sandbox_of,
)

COUNT = st.integers(0, 2**63)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | TEXT
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "str": TEXT,
    "int": COUNT,
    "list[str]": st.lists(TEXT, max_size=3),
    "dict[str, Any]": st.dictionaries(TEXT, PLAIN, max_size=3),
    "str | None": st.none() | TEXT,
    "float | None": st.none() | st.floats(allow_nan=False, allow_infinity=False),
}
HELLO = Hello("s1", "k8s.io", "runc", "kuasar-runc", "i1", 3, 4711, "ready", ["c1"])
REQUEST = Request(5, 1, "key", "task.create", {"id": "c1"}, 12.5, 3, ["old"])
REPLY = Reply(5, 1, 3, {"pid": 1})
MESSAGES: list[Message] = [
    Welcome(5, 2),
    HELLO,
    REQUEST,
    REPLY,
    Reply(5, 1, 3, error={"kind": "not_found", "message": "m", "data": {}}),
    Event(3, 1, "task.exit", {"id": "e"}),
    Heartbeat(5, 3, ["k"], 7),
]


@st.composite
def messages(draw: st.DrawFn) -> Message:
    cls = draw(st.sampled_from(get_args(Message)))
    if cls is Reply:
        answer = draw(FIELDS["dict[str, Any]"])
        which = draw(st.sampled_from(["body", "error"]))
        spans = draw(st.none() | FIELDS["dict[str, Any]"])
        return Reply(draw(COUNT), draw(COUNT), draw(COUNT), **{which: answer}, spans=spans)
    values = {f.name: draw(FIELDS[str(f.type)]) for f in dataclasses.fields(cls)}
    if cls is Hello:
        values["pid"] = draw(st.integers(0, 2**22))
    message: Message = cls(**values)
    return message


@given(messages())
def test_every_message_survives_the_round_trip(message: Message) -> None:
    assert decode(encode(message)) == message


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    with pytest.raises(MalformedMessage) as caught:
        decode(data)
        raise MalformedMessage("it is one")
    assert str(caught.value)


@given(PLAIN | st.dictionaries(st.sampled_from(["v", "k", "epoch", "n", "body", "acks", "x"]), PLAIN))
def test_any_msgpack_is_a_message_or_malformed(wire: Any) -> None:
    with pytest.raises(MalformedMessage):
        decode(msgpack.packb(wire))
        raise MalformedMessage("it is one")


@given(st.sampled_from(MESSAGES), st.data())
def test_one_wrong_part_is_named(message: Message, data: st.DataObject) -> None:
    """Whatever one part of a good message is replaced by: it decodes to a message of the same kind, or is refused."""
    wire = msgpack.unpackb(encode(message))
    name = data.draw(st.sampled_from([key for key in wire if key not in ("v", "k")]))
    wire[name] = data.draw(PLAIN)
    try:
        decoded = decode(msgpack.packb(wire))
    except MalformedMessage as exc:
        assert message.kind in str(exc)
        assert name in str(exc) or "exactly one" in str(exc)
    else:
        assert type(decoded) is type(message)


@given(st.sampled_from(MESSAGES), st.data())
def test_a_cut_message_is_malformed(message: Message, data: st.DataObject) -> None:
    whole = encode(message)
    with pytest.raises(MalformedMessage):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(MalformedMessage, match="not msgpack"):
        decode(whole + b"\x00")


def wire_of(message: Message, **changes: Any) -> bytes:
    return bytes(msgpack.packb({**msgpack.unpackb(encode(message)), **changes}))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not msgpack"),
        (msgpack.packb("hello"), "a map is needed, got str"),
        (msgpack.packb({"k": "hello"}), "version None"),
        (wire_of(REQUEST, v=2), "version 2, this side speaks 1"),
        (wire_of(REQUEST, v=True), "version True"),
        (wire_of(REQUEST, v=1.0), "version 1.0"),
        (wire_of(REQUEST, k="goodbye"), "unknown kind 'goodbye'"),
        (wire_of(REQUEST, k=["request"]), "unknown kind"),
        (wire_of(REQUEST, extra=1, more=2), "request: unknown keys extra, more"),
        (wire_of(REQUEST, epoch=True), "request: epoch is bool"),
        (wire_of(REQUEST, n="1"), "request: n is str"),
        (wire_of(REQUEST, n=-1), "request: n is negative"),
        (wire_of(REQUEST, acks=["a", 1]), "request: acks must hold strings"),
        (wire_of(REQUEST, body={b"raw": 1}), "request: body must have strings as keys"),
        (wire_of(REQUEST, deadline=float("nan")), "request: deadline is not a time"),
        (wire_of(REQUEST, deadline=float("inf")), "request: deadline is not a time"),
        (wire_of(HELLO, pid=1 << 30), "hello: pid is not between 0 and"),
        (wire_of(REPLY, error={}), "reply: exactly one of body and error"),
        (wire_of(REPLY, body=None), "reply: exactly one of body and error"),
        (msgpack.packb({"v": 1, "k": "welcome", "epoch": 1}), "welcome: generation is missing"),
        (bytes(MAX_MESSAGE_BYTES + 1), "the bus carries at most 16777216"),
        (b"\x91" * 100_000, "not msgpack"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, words: str) -> None:
    with pytest.raises(MalformedMessage, match=words):
        decode(data)


@pytest.mark.parametrize(
    "body",
    [{"x": object()}, {"x": 2**64}, {"x": "\ud800"}, {"x": bytes(MAX_MESSAGE_BYTES)}, {"x": {1, 2}}],
    ids=["object", "large int", "surrogate", "large bytes", "set"],
)
def test_what_cannot_be_carried_is_refused_before_it_leaves(body: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage, match=r"^event"):
        encode(Event(1, 1, "t", body))


def test_a_body_that_contains_itself_is_refused() -> None:
    body: dict[str, Any] = {}
    body["self"] = body
    with pytest.raises(MalformedMessage):
        encode(Event(1, 1, "t", body))


def test_a_deadline_may_be_absent_nil_or_whole() -> None:
    wire = msgpack.unpackb(encode(dataclasses.replace(REQUEST, deadline=None)))
    assert "deadline" not in wire
    assert decode(msgpack.packb({**wire, "deadline": None})) == decode(msgpack.packb(wire))
    whole = decode(msgpack.packb({**wire, "deadline": 5}))
    assert isinstance(whole, Request)
    assert whole.deadline == 5


def test_names_on_the_bus() -> None:
    assert sandbox_of(routing_id("a-b.c", "0123abcd")) == "a-b.c"
    for bad in (b"", b"s1", b"s1@", b"@i", b"s1@i@j", b"../x@i", b"s1@../x", b"\xff@i", b"s" * 100 + b"@i"):
        with pytest.raises(MalformedMessage, match="<sandbox>@<instance>"):
            sandbox_of(bad)
