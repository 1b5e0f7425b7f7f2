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
