"""Who a guest is: a clone of a template becomes a machine of its own, and proves it."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
import time
from contextlib import suppress
from typing import Any

from kuasar.agent import kernel
from kuasar.agent.requests import Body
from kuasar.agent.setup import set_hostname
from kuasar.core.errors import InvalidArgument, wrap

ENTROPY_BYTES = 64
_MACHINE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")
_MACHINE_ID_FILE = "/etc/machine-id"
_BOOT_ID_FILE = "/proc/sys/kernel/random/boot_id"
_INTERFACES = "/sys/class/net"
_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207


def assume(body: Body, directory: str) -> None:
    """Take the identity of a ``guest.identity`` request: clock, random numbers, machine id, host name. Nothing is
    changed by a request that is wrong. ``directory`` holds the file behind the machine id."""
    time_ns = require_time(body)
    entropy = body.binary("entropy")
    machine_id, hostname = body.text("machine_id"), body.text("hostname")
    if len(entropy) != ENTROPY_BYTES:
        raise InvalidArgument(f"entropy: {ENTROPY_BYTES} bytes are needed, got {len(entropy)}", field="entropy")
    if not _MACHINE_ID.fullmatch(machine_id):
        raise InvalidArgument(f"machine_id: {machine_id!r:.80} is not 32 hexadecimal digits", field="machine_id")
    if not hostname:
        raise InvalidArgument("hostname: must not be empty", field="hostname")
    set_hostname(hostname)  # checks it, too
    seed(entropy)
    _write_machine_id(machine_id, directory)
    set_clock(time_ns)


def prove(instance: str, with_boot_id: bool = True) -> dict[str, Any]:
    """What this machine is, asked of the kernel. The boot id is made at its first read, so this must be the first one
    after the random numbers have been seeded: never read it in a template."""
    return {
        "time_ns": time.time_ns(),
        "boot_id": _read(_BOOT_ID_FILE) if with_boot_id else "",
        "machine_id": _read(_MACHINE_ID_FILE),
        "hostname": socket.gethostname(),
        "instance": instance,
        "macs": _macs(),
    }


def require_time(body: Body) -> int:
    """``time_ns`` of a request."""
    time_ns = body.number("time_ns")
    if not 0 < time_ns < 2**63:
        raise InvalidArgument(f"time_ns: {time_ns} is no time after 1970 in nanoseconds", field="time_ns")
    return time_ns


def set_clock(time_ns: int) -> int:
    """Set the time of day; by how many nanoseconds that moved it."""
    offset = time_ns - time.time_ns()
    try:
        time.clock_settime_ns(time.CLOCK_REALTIME, time_ns)
    except OSError as exc:
        raise wrap(exc, "cannot set the clock") from exc
    return offset


def seed(entropy: bytes) -> None:
    """Give the kernel's random number generator bytes that nobody else knows, and have it start anew from them."""
    try:
        fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _RNDADDENTROPY, struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy)
            fcntl.ioctl(fd, _RNDRESEEDCRNG)
        finally:
            os.close(fd)
    except OSError as exc:
        raise wrap(exc, "cannot seed the random number generator") from exc


def _write_machine_id(machine_id: str, directory: str) -> None:
    """Into a file that lies over the one of the read-only root."""
    path = f"{directory}/machine-id"
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{machine_id}\n")
        if _read(_MACHINE_ID_FILE) != machine_id:
            kernel.mount(path, _MACHINE_ID_FILE, "", kernel.MS_BIND)
    except OSError as exc:
        raise wrap(exc, "cannot set the machine id") from exc


def _macs() -> list[str]:
    macs = []
    for name in os.listdir(_INTERFACES):
        with suppress(OSError):  # unplugged at this moment
            macs.append(_read(f"{_INTERFACES}/{name}/address"))
    return sorted(mac for mac in macs if mac not in ("", "00:00:00:00:00:00"))


def _read(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read().strip()
