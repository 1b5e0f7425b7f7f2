"""The stack that is measured: one of our own, started as `make run` does, or a containerd that is there already."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console

from kuasar.cli.images import BUSYBOX, write_archive
from scripts.layout import CHECKOUT, Layout, default_settings, engine_settings
from scripts.stack import running
from tests.bench.contestants import COLD
from tests.bench.modules import WASM_IMAGE, modules_image

SETTINGS = f"""{default_settings()}
[sandboxers.{COLD.handler}]
engine = "qemu-cold"
{engine_settings("qemu-cold", "qemu", template=False)}"""
"""All engines, and one whose machines boot."""
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


def layout() -> Layout:
    """Of our own stack: it has a handler more than the shipped ones."""
    return Layout(name="bench", data=_DATA, subnet=_SUBNET, settings=SETTINGS, handlers=(COLD.handler,))


@contextlib.contextmanager
def existing(socket: str, image: str, wasm_image: str) -> Iterator[UnderTest]:
    """A containerd that runs, with images that it has."""
    yield UnderTest(socket, image or BUSYBOX, wasm_image or WASM_IMAGE, "/var/log/pods", "")


@contextlib.contextmanager
def own_stack(console: Console) -> Iterator[UnderTest]:
    """supervisord, gateway, zygote and containerd, started and stopped here; images and logs stay for the next run."""
    with console.status("starting containerd and ours under supervisord"), contextlib.ExitStack() as starting:
        stack = starting.enter_context(running(layout()))
        with tempfile.TemporaryDirectory(prefix="kuasar-bench-") as directory:
            archive = os.path.join(directory, "wasm.tar")
            write_archive(modules_image(), archive)
            stack.import_image(archive)
        started = starting.pop_all()
    with started:
        used = stack.layout
        yield UnderTest(used.containerd_socket, BUSYBOX, WASM_IMAGE, f"{used.logs}/pods", used.run)
