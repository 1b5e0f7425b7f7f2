"""The keeper's messages: what is encoded is decoded, and nothing else is."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kuasar.core.errors import InvalidArgument, KuasarError, NotFound, Unavailable
from kuasar.supervisor import keeper_wire
from kuasar.supervisor.keeper_wire import MAX_META_BYTES, MAX_NAME_CHARS, Reply, Request

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
NAMES = st.from_regex(r"[A-Za-z0-9](?:[A-Za-z0-9/._:@-]{0,40}[A-Za-z0-9._:@-])?", fullmatch=True)
PREFIXES = st.just("") | NAMES | NAMES.map(lambda name: f"{name}/")
REQUESTS = st.one_of(
    st.builds(Request, st.just("put"), name=NAMES, meta=st.binary()),
    st.builds(Request, st.sampled_from(["get", "drop"]), name=NAMES),
    st.builds(Request, st.just("drop_all"), prefix=PREFIXES),
    st.builds(Request, st.just("list"), prefix=PREFIXES, after=PREFIXES),
    st.builds(Request, st.just("accept"), name=NAMES, listener=NAMES),
    st.builds(Request, st.sampled_from(["resign", "done"])),
)
NAMED: dict[str, dict[str, Any]] = {
    "put": {"name": "a", "meta": b""},
    "get": {"name": "a"},
    "list": {"prefix": "", "after": ""},
}


@settings(deadline=None)
@given(REQUESTS)
def test_a_request_survives_the_wire(request_: Request) -> None:
    assert keeper_wire.decode_request(keeper_wire.encode_request(request_)) == request_


@settings(deadline=None)
@given(st.binary(max_size=200) | PLAIN.map(msgpack.packb))
def test_any_bytes_are_a_request_or_an_error(data: bytes) -> None:
    try:
        request = keeper_wire.decode_request(data)
    except InvalidArgument as exc:
        assert exc.field
    else:
        assert keeper_wire.encode_request(request)


@settings(deadline=None)
@given(st.sampled_from(sorted(NAMED)), st.data(), PLAIN)
def test_any_value_of_a_field_is_right_or_named(op: str, data: st.DataObject, value: Any) -> None:
    field = data.draw(st.sampled_from(sorted(NAMED[op])))
    try:
        request = keeper_wire.decode_request(msgpack.packb({"op": op, **NAMED[op], field: value}))
    except InvalidArgument as exc:
        assert exc.field == field
    else:
        assert getattr(request, field) == value


@pytest.mark.parametrize("name", ["", "/a", "a/", "a b", "a\n", "ä", "a\0", "x" * (MAX_NAME_CHARS + 1), 7, None, b"a"])
def test_names_are_checked(name: Any) -> None:
    with pytest.raises(InvalidArgument, match="name"):
        keeper_wire.decode_request(msgpack.packb({"op": "get", "name": name}))


def test_the_holder_is_told_before_anything_is_sent() -> None:
    with pytest.raises(InvalidArgument, match="meta: 32769 bytes"):
        keeper_wire.encode_request(Request("put", name="a", meta=bytes(MAX_META_BYTES + 1)))
    with pytest.raises(InvalidArgument, match="op"):
        keeper_wire.encode_request(Request("eat", name="a"))


def test_the_largest_request_fits() -> None:
    request = Request("put", name="n" * MAX_NAME_CHARS, meta=bytes(MAX_META_BYTES))
    assert keeper_wire.decode_request(keeper_wire.encode_request(request)) == request


@settings(deadline=None)
@given(st.builds(Reply, st.booleans(), st.binary(), st.lists(st.text()).map(tuple), st.booleans()))
def test_a_reply_survives_the_wire(reply: Reply) -> None:
    assert keeper_wire.decode_reply(keeper_wire.encode_reply(reply)) == reply


def test_an_error_survives_the_wire() -> None:
    error = keeper_wire.decode_reply(keeper_wire.encode_error(NotFound("no socket is kept")))
    assert isinstance(error, NotFound)
    assert error.message == "no socket is kept"


@settings(deadline=None)
@given(st.binary(max_size=100) | PLAIN.map(msgpack.packb))
def test_any_bytes_are_a_reply_or_an_error(data: bytes) -> None:
    reply = keeper_wire.decode_reply(data)
    assert isinstance(reply, Reply | KuasarError)
    assert not isinstance(keeper_wire.decode_reply(b"\x00"), Reply)


def test_long_lists_are_told_in_pages() -> None:
    names = [f"{number:0500}" for number in range(300)]
    told: list[str] = []
    more = True
    while more:
        page, more = keeper_wire.page(names[len(told) :])
        assert page
        assert len(keeper_wire.encode_reply(Reply(names=page, more=more))) < keeper_wire.MAX_MESSAGE_BYTES
        told += page
    assert told == names


def test_a_malformed_reply_counts_as_an_absent_keeper() -> None:
    assert isinstance(keeper_wire.decode_reply(msgpack.packb({"found": 1})), Unavailable)
