"""What a module says of itself, read totally."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuasar.agent.drivers.wasm.module import PAGE, Interface, read_interface
from kuasar.core.errors import BackendFailed
from tests.wasm import NAMES, large, module


def test_a_command() -> None:
    assert read_interface(module("args"), "args").is_command
    assert ("wasi_snapshot_preview1", "proc_exit") in read_interface(module("exit"), "exit").imports
    assert read_interface(module("greedy"), "greedy") == Interface((), True, 1024 * PAGE)


def test_a_library_and_a_foreign_import() -> None:
    assert not read_interface(module("library"), "library").is_command
    assert ("env", "launch_rocket") in read_interface(module("foreign"), "foreign").imports


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("library",)])
def test_every_test_program_is_a_command(name: str) -> None:
    assert read_interface(module(name), name).is_command


def test_many_functions() -> None:
    assert read_interface(large(1 << 20), "large").is_command


@pytest.mark.parametrize(
    "body",
    [
        b"\x01\x7f",  # a section longer than the file
        b"\x01\x02\x01\x61",  # a type that is no function
        b"\x02\x05\x01\x01a\x01b",  # an import cut off
        b"\x02\x06\x01\x01a\x01b\x09",  # of an unknown kind
        b"\x07\x05\x01\x7fabc",  # a name longer than the file
        b"\x01" + b"\xff" * 12,  # a number without an end
    ],
)
def test_what_is_damaged_is_named(body: bytes) -> None:
    with pytest.raises(BackendFailed, match=r"/x\.wasm: damaged"):
        read_interface(b"\0asm\1\0\0\0" + body, "/x.wasm")


@given(st.binary(max_size=200))
def test_no_bytes_make_it_do_anything_else(body: bytes) -> None:
    try:
        read_interface(b"\0asm\1\0\0\0" + body, "x")
    except BackendFailed:
        return


@given(st.sampled_from(NAMES), st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_damaged_programs(name: str, at: int, patch: bytes) -> None:
    data = bytearray(module(name))
    data[8 + at : 8 + at + len(patch)] = patch
    try:
        read_interface(bytes(data), name)
    except BackendFailed:
        return
