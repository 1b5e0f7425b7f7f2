"""PID 1 of the guest, from the kernel's hand-over to power-off.

Started by the initial memory disk with /dev and /proc mounted and the read-only root as root. It prepares the
machine, opens the channel to the host, and then *is* the agent; when that ends, or when anything here fails, the
machine is powered off with the reason on the console. A kernel panic therefore means that the kernel panicked.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from guest.pid1 import machine, modules

if TYPE_CHECKING:
    from guest.pid1.serial import Carrier
    from kuasar.core.aio import Loop

DIRECTORY = "/run/kuasar"
"""What the host calls the sandbox directory: the agent keeps containers, shared memory and its driver's state here."""


def main() -> None:
    """Never returns."""
    reason = "unknown"
    try:
        code = _serve()
        reason = f"the agent exited with {code}"
    except BaseException as exc:
        reason = f"{type(exc).__name__}: {exc}"
        sys.excepthook(type(exc), exc, exc.__traceback__)
    finally:
        machine.power_off(reason)


class _Machine:
    """See ``kuasar.agent.machine``."""

    def __init__(self, carrier: Carrier | None) -> None:
        self.load_module = modules.Table().load
        self._carrier = carrier

    def attach(self, loop: Loop) -> None:
        if self._carrier is not None:
            loop.add_reader(self._carrier.fileno(), self._pump)

    def _pump(self) -> None:
        try:
            assert self._carrier is not None
            self._carrier.pump()
        except Exception as exc:
            machine.power_off(f"the carrier of the agent's channel failed: {type(exc).__name__}: {exc}")


def _serve() -> int:
    options = machine.kernel_arguments()
    machine.mount_all()
    machine.load_boot_modules()
    machine.bring_loopback_up()
    machine.protect_from_children()
    os.makedirs(DIRECTORY, mode=0o700)
    # What costs most is imported only now: a failure above is told a little sooner, and nothing is slower for it.
    from guest.pid1 import channel
    from kuasar.agent.main import run

    listener, carrier = channel.listen(DIRECTORY)
    machine.say(f"ready after {time.monotonic():.2f} s, {channel.describe(listener)}")
    machine.give_memory_back()  # of what only the start has needed
    code = run(
        {
            "sandbox_id": "guest",
            "directory": DIRECTORY,
            "netns": "",
            "host_namespaces": [],
            "pid_namespace": False,
            "driver": "oci",
            "options": {"binary": "/usr/bin/crun"},
            "log_level": options.get("kuasar.log", "info"),
        },
        listener.detach(),
        _Machine(carrier),
    )
    if carrier is not None:
        carrier.flush()
    return code
