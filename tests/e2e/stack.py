"""The stack of a test session: the project's own, in directories of its own, with the test images and a bad engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kuasar.core.config import load
from scripts.layout import CHECKOUT, VSOCK_DAEMON, Layout, default_settings, engine_settings
from scripts.leftovers import Leftover
from scripts.stack import Stack
from tests.e2e.images import wasm_modules
from tests.e2e.standins import stand_ins
from tests.standins.guest.server import running_hardware
from tests.standins.install import install
from tests.standins.quark_host import QuarkProgram

# sessions of several checkouts may run at a time: names and addresses go by our pid (at most 7 digits)
NAME = f"e{os.getpid()}"
SUBNET = f"10.{128 + os.getpid() % 96}.0.0/16"
GATEWAY_ADDRESS = SUBNET.replace("0.0/16", "0.1")
KEPT_LOGS = f"{CHECKOUT}/.kuasar/e2e-logs"
TRACED = f"t{os.getpid()}"
"""Name of the stack of the tests of traces."""
TRACED_SUBNET = f"10.{32 + os.getpid() % 96}.0.0/16"
BROKEN = "kuasar-broken"
"""A sandboxer whose runtime binary does not exist."""

_QEMU: dict[str, str | bool] = {"binary": os.environ["QEMU"]} if os.environ.get("QEMU") else {}
"""``QEMU=path``: another QEMU than the machine's (scripts/fetch-qemu10.sh)."""
_VSOCK: dict[str, str | bool] = {"channel": "vhost-user-vsock", "vhost_device_vsock": VSOCK_DAEMON}
if os.environ.get("CHANNEL"):  # another channel to the agents of machines than the usual one
    _QEMU |= _VSOCK | {"channel": os.environ["CHANNEL"]}

METRICS = f"unix:/run/kuasar-{NAME}/metrics.sock"
"""Where the gateway of this session serves its metrics."""
VSOCK_HANDLER = "kuasar-qemu-vsock"
"""Machines whose agents are reached by the vsock of a daemon."""
HUGE_HANDLER = "kuasar-qemu-huge"
"""Machines whose memory is of huge pages."""
SETTINGS = f"""
[metrics]
listen = "{METRICS}"
[sandboxers.{VSOCK_HANDLER}]
engine = "qemu-vsock"
{engine_settings("qemu-vsock", "qemu", **_QEMU | _VSOCK)}
[sandboxers.{HUGE_HANDLER}]
engine = "qemu-huge"
{engine_settings("qemu-huge", "qemu", **_QEMU | {"huge_pages": True})}
[debug]
failpoints = true
[sandboxers.{BROKEN}]
engine = "broken"
[engines.broken]
kind = "runc"
binary = "/no/such/runtime"
"""


@contextmanager
def start_stack(
    name: str = NAME,
    subnet: str = SUBNET,
    settings: str = SETTINGS,
    environment: tuple[tuple[str, str], ...] = (),
    kept_logs: str = KEPT_LOGS,
) -> Iterator[Stack]:
    """A running stack with the test images imported; what it leaves behind at the end fails the session. Its names are
    a letter and our pid; ``settings`` are added to those of all engines, ``environment`` is its containerd's."""
    _stop_abandoned_stacks()
    data = tempfile.mkdtemp(prefix="kuasar-e2e-", dir="/var/tmp")
    with running_hardware() as hardware:
        tables = _engines(data, hardware) + settings
        handlers = tuple(handler for handler in (VSOCK_HANDLER, HUGE_HANDLER) if handler in settings)
        yield from _run(
            Stack(
                Layout(name=name, data=data, subnet=subnet, settings=tables, handlers=handlers, environment=environment)
            ),
            kept_logs,
        )


def _engines(data: str, hardware: str) -> str:
    """Stand-ins take the place of VMMs that run no guest here, on this ``hardware``."""
    words = {"STANDIN_HARDWARE": hardware}
    firecracker = install("firecracker", Path(data, "standins", "firecracker"), settings=words)
    changes: dict[str, dict[str, str | bool]] = {
        "qemu": _QEMU,
        "firecracker": {"binary": firecracker, "vmm_user": "root", "template": False},
        "quark": {"binary": str(QuarkProgram(Path(data)).path)},
        **stand_ins(data, hardware),
    }
    return default_settings(**changes)


def _run(stack: Stack, kept_logs: str) -> Iterator[Stack]:
    data = stack.layout.data
    left: list[Leftover] = []
    try:
        stack.start()
        stack.add_image(wasm_modules())
        yield stack
    finally:
        try:
            left = stack.stop()
        finally:
            shutil.rmtree(kept_logs, ignore_errors=True)
            if os.path.exists(stack.layout.logs):
                shutil.copytree(stack.layout.logs, kept_logs)
            shutil.rmtree(data, ignore_errors=True)
    assert not left, "left over by the stack: " + ", ".join(map(str, left))


def _stop_abandoned_stacks() -> None:
    """A session that was killed could not stop its stack."""
    for name in os.listdir("/run"):
        found = re.fullmatch(r"kuasar-([et]([0-9]+))", name)
        if found is None or os.path.exists(f"/proc/{found[2]}"):
            continue
        data = os.path.dirname(load(f"/run/{name}/kuasar.toml").log_dir)
        Stack(Layout(name=found[1], data=data)).stop()
        shutil.rmtree(data, ignore_errors=True)


def supervisorctl(stack: Stack, *words: str) -> tuple[int, str]:
    """What an operator types: exit code and output."""
    done = subprocess.run(
        [sys.executable, "-m", "supervisor.supervisorctl", "-c", stack.layout.supervisord_conf, *words],
        capture_output=True,
        text=True,
        timeout=30,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout + done.stderr


def sandbox_directory(stack: Stack, pod: str) -> str:
    """Where the worker of a pod keeps its record."""
    return f"{stack.layout.run}/sandboxes/{pod}"


def tail(path: str, size: int = 3000) -> str:
    """The end of a file; empty if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
