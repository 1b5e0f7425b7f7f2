"""What the guest's first process executes: its hardware is replaced, then it is the product's own first process.

Runs in the guest, by its Python, from a copy in ``/run/hardware``: beside this file are the descriptions that the
host's side keeps up to date (``birth.py``, ``machine.py``).
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from typing import Any

HARDWARE = "/run/hardware"
REAL_TIME_NS = time.time_ns


def _text(name: str) -> str:
    with open(f"{HARDWARE}/{name}", encoding="utf-8") as file:
        return file.read()


class Clock:
    """The time of day of this machine: the host's, and what it was set to."""

    def __init__(self, offset_ns: int) -> None:
        self.offset_ns = offset_ns

    def time_ns(self) -> int:
        return REAL_TIME_NS() + self.offset_ns

    def time(self) -> float:
        return self.time_ns() / 1e9

    def settime_ns(self, clock: int, value: int) -> None:
        self.offset_ns = value - REAL_TIME_NS()
        with open(f"{HARDWARE}/clock", "w", encoding="utf-8") as file:
            file.write(str(self.offset_ns))


def replace_clock(offset_ns: int) -> None:
    """The kernel's clock is the host's, too."""
    clock = Clock(offset_ns)
    patched: Any = time
    patched.time_ns, patched.time, patched.clock_settime_ns = clock.time_ns, clock.time, clock.settime_ns


def replace_machine(listener: int) -> None:
    """The kernel is the host's: no module is loaded, no parameter of it is changed. The vsock device is a socket."""
    from guest.pid1 import channel, machine, modules

    nothing: Any = lambda *_: None  # noqa: E731 - of any form
    patched: Any = machine
    patched.load_boot_modules = patched._set_memory_policy = nothing
    if not os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        patched._delegate_controllers = nothing
    patched = modules.Table
    patched.load = nothing
    patched = os
    patched.sync = nothing  # would wait for all disks of the host

    def listen(directory: str) -> tuple[socket.socket, None]:
        sock = socket.socket(fileno=listener)
        sock.listen(8)
        return sock, None

    patched = channel
    patched.listen = listen


def replace_devices() -> None:
    """Disks are loop devices, whose serial numbers are in a file each; shares are mounts; sizes are in a file."""
    from kuasar.agent import kernel
    from kuasar.agent.guest import disks, online, rest

    def serial_of(name: str) -> str:
        try:
            return _text(f"disks/{name}")
        except FileNotFoundError:
            return ""

    real_mount = kernel.mount

    def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
        if kind != "virtiofs":
            real_mount(source, target, kind, flags, data)
            return
        share = f"{HARDWARE}/shares/{source}"
        if not os.path.ismount(share):
            raise OSError(errno.EINVAL, "no device has this tag", source)
        real_mount(share, target, "", kernel.MS_BIND | kernel.MS_REC)

    patched: Any = disks
    patched._serial_of = serial_of
    patched = kernel
    patched.mount = mount
    patched = online
    patched.expect_memory = lambda: None
    patched._online_all = lambda: None
    patched.online_cpus = lambda: json.loads(_text("size.json"))[0]
    patched.total_memory = lambda: json.loads(_text("size.json"))[1]
    patched = rest
    patched.rest, patched.wake = (lambda: 0), (lambda: None)


def main() -> None:
    """Never returns."""
    facts = json.loads(_text("boot.json"))
    replace_clock(facts["clock_offset_ns"])
    replace_machine(facts["listener"])
    replace_devices()
    from guest.pid1.boot import main as boot

    boot()


if __name__ == "__main__":
    main()
