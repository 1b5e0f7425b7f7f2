"""The zygote's messages: what is encoded is decoded, and nothing else is."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuasar.core.errors import InvalidArgument
from kuasar.supervisor import zygote_wire

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
REQUESTS = st.fixed_dictionaries(
    {
        "kind": st.text(),
        "title": st.text(st.characters(categories=("L", "N")), min_size=1, max_size=zygote_wire.MAX_TITLE_CHARS),
        "args": st.dictionaries(st.text(), PLAIN, max_size=4),
    },
    optional={"flags": st.sampled_from([0, zygote_wire.CLONE_NEWPID, zygote_wire.NAMESPACE_FLAGS])},
)


@given(REQUESTS)
def test_a_request_survives_the_wire(request_: dict[str, Any]) -> None:
    decoded = zygote_wire.decode_request(zygote_wire.encode_request(request_))
    assert vars(decoded) == {"flags": 0, **request_}


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_an_error(data: bytes) -> None:
    try:
        request = zygote_wire.decode_request(data)
    except InvalidArgument as exc:
        assert exc.field
    else:
        assert zygote_wire.encode_request(vars(request))


@given(PLAIN)
def test_any_value_is_a_request_or_an_error(value: Any) -> None:
    with pytest.raises(InvalidArgument):
        zygote_wire.decode_request(msgpack.packb({"kind": "agent", "title": "t", "args": {}, "flags": str(value)}))


def test_the_sender_is_told_before_anything_is_sent() -> None:
    with pytest.raises(InvalidArgument, match="title"):
        zygote_wire.encode_request({"kind": "agent", "title": "", "args": {}})


@pytest.mark.parametrize("pid", [1, 4_194_304])
def test_replies(pid: int) -> None:
    assert zygote_wire.decode_reply(zygote_wire.encode_pid(pid)) == pid
    assert zygote_wire.decode_reply(zygote_wire.encode_error("no")) == "no"


@given(st.binary(max_size=50))
def test_any_bytes_are_a_pid_or_words(data: bytes) -> None:
    answer = zygote_wire.decode_reply(data)
    assert (isinstance(answer, int) and answer > 0) or isinstance(answer, str)
