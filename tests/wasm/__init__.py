"""Small WebAssembly programs for tests, in the text format; compiled when a test needs them."""

from __future__ import annotations

import os
from functools import cache

import wasmtime

_DIRECTORY = os.path.dirname(__file__)
HELLO = os.path.join(_DIRECTORY, "../../scripts/wasm/hello.wat")
NAMES = ("hello", *sorted(name.removesuffix(".wat") for name in os.listdir(_DIRECTORY) if name.endswith(".wat")))
"""All programs; ``hello`` is that of the demonstration image."""


@cache
def module(name: str) -> bytes:
    """The binary form of ``<name>.wat``."""
    path = HELLO if name == "hello" else os.path.join(_DIRECTORY, f"{name}.wat")
    with open(path, "rb") as file:
        return bytes(wasmtime.wat2wasm(file.read()))


def large(code_bytes: int) -> bytes:
    """A program that does nothing and has about ``code_bytes`` of code that takes long to compile."""
    step = b"\x20\x00\x41\x07\x6c\x41\x03\x6a\x20\x00\x73\x21\x00"  # x = (x * 7 + 3) ^ x
    body = b"\x00" + step * 70 + b"\x20\x00\x0b"
    function = _number(len(body)) + body
    count = max(1, code_bytes // len(function))
    parts = (
        (1, b"\x02\x60\x01\x7f\x01\x7f\x60\x00\x00"),  # types: i32 -> i32, and of _start
        (3, _number(count + 1) + b"\x00" * count + b"\x01"),
        (7, b"\x01\x06_start\x00" + _number(count)),
        (10, _number(count + 1) + function * count + b"\x02\x00\x0b"),
    )
    return b"\0asm\x01\0\0\0" + b"".join(bytes([kind]) + _number(len(part)) + part for kind, part in parts)


def _number(value: int) -> bytes:
    """``value`` in LEB128."""
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _number(rest) if rest else bytes([low])
