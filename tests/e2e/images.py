"""The image of the Wasm tests: every module of tests/wasm and tests/e2e/modules at the root, compiled here."""

from __future__ import annotations

import os

import wasmtime

from kuasar.cli.images import Entry, Image, Settings
from tests.e2e.engines import WASM_MODULES

HERE = os.path.dirname(os.path.abspath(__file__))
MODULE_DIRS = (os.path.join(os.path.dirname(HERE), "wasm"), os.path.join(HERE, "modules"))


def wasm_modules() -> Image:
    """All modules, a file and directories to mount on. The entrypoint is the module that writes its arguments."""
    entries = [
        Entry("etc"),
        Entry("tmp", mode=0o1777),
        Entry("data"),
        Entry("data/greeting", b"hello from the image\n", mode=0o644),
        Entry("broken.wasm", b"\0asm\1\0\0\0 this is no module"),
    ]
    for directory in MODULE_DIRS:
        for name in sorted(os.listdir(directory)):
            if name.endswith(".wat"):
                with open(os.path.join(directory, name), encoding="utf-8") as file:
                    module = bytes(wasmtime.wat2wasm(file.read()))
                entries.append(Entry(name.removesuffix(".wat") + ".wasm", module))
    return Image(WASM_MODULES, tuple(entries), Settings(entrypoint=("/args.wasm",), env=("FROM_IMAGE=yes",)))
