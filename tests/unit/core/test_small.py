"""Errors, identifiers and log lines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuasar.core import errors, log
from kuasar.core.ids import MAX_ID_BYTES, require_id
from kuasar.gateway.status import code_of

LEAVES = [cls for cls in errors.KuasarError.__subclasses__() if cls.__module__ == "kuasar.core.errors"]


@pytest.mark.parametrize("cls", LEAVES)
def test_every_error_crosses_a_border_unchanged(cls: type[errors.KuasarError]) -> None:
    sent = cls("words", extra=1)
    received = errors.from_wire(sent.to_wire())
    assert type(received) is cls
    assert (received.message, received.data) == (sent.message, sent.data)
    assert code_of(received)  # every kind has a gRPC code


def test_attributes_come_along() -> None:
    received = errors.from_wire(errors.WrongState("w", seen="a", needed="b").to_wire())
    assert isinstance(received, errors.WrongState)
    assert (received.seen, received.needed) == ("a", "b")


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner)))
def test_whatever_arrives_becomes_an_error(wire: Any) -> None:
    assert isinstance(errors.from_wire(wire), errors.KuasarError)


def test_wrapping() -> None:
    ours = errors.NotFound("x")
    assert errors.wrap(ours, "doing") is ours
    wrapped = errors.wrap(OSError(28, "No space left on device", "/f"), "writing")
    assert isinstance(wrapped, errors.BackendFailed)
    assert (str(wrapped), wrapped.data["errno"]) == ("writing: No space left on device (/f)", 28)
    assert isinstance(errors.wrap(ValueError("v"), "doing"), errors.Internal)


@pytest.mark.parametrize("good", ["a", "A-b_c.d", "0" * MAX_ID_BYTES])
def test_identifiers(good: str) -> None:
    assert require_id(good, "id") == good


@pytest.mark.parametrize(
    "bad",
    ["", ".", "..", "../x", "a/b", "a--b", "-a", "a-", "a\n", "a b", "é", "x" * (MAX_ID_BYTES + 1), None, 7, b"a"],
)
def test_bad_identifiers_name_the_field(bad: object) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        require_id(bad, "sandbox_id")
    assert caught.value.field == "sandbox_id"
    assert str(caught.value).startswith("sandbox_id: ")


@given(st.text())
def test_whatever_is_accepted_is_safe_as_a_path_part(text: str) -> None:
    try:
        accepted = require_id(text, "id")
    except errors.InvalidArgument:
        return
    assert "/" not in accepted
    assert accepted not in (".", "..")
    assert accepted.isascii()


@pytest.fixture
def lines() -> Iterator[Any]:
    reader, writer = os.pipe()
    log.configure("info", writer, process="test")
    yield lambda: os.read(reader, 65536).decode()
    log.configure()
    os.close(reader)
    os.close(writer)


def test_a_line_is_one_line_whatever_is_in_it(lines: Any) -> None:
    log.debug("not shown")
    log.warning("two words", plain="x", odd='a "b"\nc=d', number=3)
    text = lines()
    assert text.count("\n") == 1
    assert text.endswith(' warning "two words" process=test plain=x odd="a \\"b\\"\\nc=d" number=3\n')


def test_a_log_without_reader_hurts_nobody() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    log.configure("info", writer)
    try:
        log.info("into the void")
    finally:
        log.configure()
        os.close(writer)
