"""The image with the WebAssembly programs of the benchmark.

``python -m tests.bench.modules FILE`` writes it as an archive, to be imported into a containerd that runs already.
"""

from __future__ import annotations

import argparse
import sys

from kuasar.cli.images import Entry, Image, Settings, write_archive
from tests.bench.contestants import LARGE_MODULE, MODULES, SMALL_MODULE
from tests.wasm import large, module

WASM_IMAGE = "localhost/kuasar/bench-modules:1"
_LARGE_BYTES = 512 * 1024


def modules_image() -> Image:
    """One that writes a line, one that idles, and two that do nothing with little and with much code."""
    programs = {
        MODULES.hello: module("hello"),
        MODULES.idle: module("idle"),
        SMALL_MODULE: large(1),
        LARGE_MODULE: large(_LARGE_BYTES),
    }
    entries = (Entry(command[0].removeprefix("/"), code) for command, code in programs.items())
    return Image(WASM_IMAGE, (*entries, Entry("tmp", mode=0o1777)), Settings(entrypoint=MODULES.hello[:1], env=()))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.modules", description="Write the image of modules.")
    parser.add_argument("file", help="the OCI archive to write")
    write_archive(modules_image(), parser.parse_args().file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
