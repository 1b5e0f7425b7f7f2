"""The stack that is measured: one of our own, started as `make run` does, or a containerd that is there already."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console

from kuasar.cli.images import BUSYBOX, wasm_image, write_archive
from scripts.layout import CHECKOUT, Layout
from scripts.stack import running
from tests.wasm import module

_WASM = "localhost/kuasar/bench-hello:1"
_DATA = f"{CHECKOUT}/.kuasar/bench"
_SUBNET = "10.89.0.0/16"


@dataclass(frozen=True)
class UnderTest:
    """Where to reach it."""

    socket: str
    image: str
    wasm_image: str
    log_root: str
    """Where the containers' log files are kept."""
    mark: str
    """What the command lines of the stack's own processes contain; empty if they are not known."""


@contextlib.contextmanager
def existing(socket: str, image: str, wasm_image: str) -> Iterator[UnderTest]:
    """A containerd that runs, with images that it has."""
    yield UnderTest(socket, image or BUSYBOX, wasm_image or _WASM, "/var/log/pods", "")


@contextlib.contextmanager
def own_stack(console: Console) -> Iterator[UnderTest]:
    """supervisord, gateway, zygote and containerd, started and stopped here; images and logs stay for the next run."""
    with console.status("starting containerd and ours under supervisord"), contextlib.ExitStack() as starting:
        stack = starting.enter_context(running(Layout(name="bench", data=_DATA, subnet=_SUBNET)))
        with tempfile.TemporaryDirectory(prefix="kuasar-bench-") as directory:
            archive = os.path.join(directory, "wasm.tar")
            write_archive(wasm_image(module("hello"), _WASM), archive)
            stack.import_image(archive)
        started = starting.pop_all()
    with started:
        layout = stack.layout
        yield UnderTest(layout.containerd_socket, BUSYBOX, _WASM, f"{layout.logs}/pods", layout.run)
