"""Hot-plugged processors and memory: the kernel shows them, this puts them to use."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any

from kuasar.agent.requests import Body
from kuasar.core.aio import Loop
from kuasar.core.errors import DeadlineExceeded, InvalidArgument

_CPUS = "/sys/devices/system/cpu"
_MEMORY = "/sys/devices/system/memory"
_POLICY = "/sys/module/memory_hotplug/parameters/online_policy"
_WAIT_SECONDS = 30.0
_POLL_SECONDS = 0.02


async def bring_online(loop: Loop, body: Body, deadline: float | None) -> dict[str, Any]:
    """Everything that is there; with ``cpus`` or ``memory_bytes`` in the request, not before there is so much.

    virtio-mem adds its memory piece by piece without telling of each, so this looks again and again meanwhile.
    """
    cpus, memory = body.number("cpus"), body.number("memory_bytes")
    for field, value in (("cpus", cpus), ("memory_bytes", memory)):
        if value < 0:
            raise InvalidArgument(f"{field}: {value} is negative", field=field)
    deadline = deadline or time.monotonic() + _WAIT_SECONDS
    while True:
        _online_all()
        have = {"cpus": online_cpus(), "memory_bytes": total_memory()}
        if have["cpus"] >= cpus and have["memory_bytes"] >= memory:
            return have
        if time.monotonic() + _POLL_SECONDS >= deadline:
            raise DeadlineExceeded(f"{have['cpus']} processors of {cpus} and {have['memory_bytes']} bytes of {memory}")
        await loop.sleep(_POLL_SECONDS)


def expect_memory() -> None:
    """Let the kernel use memory by itself as soon as it appears, most of it so that it can be taken back."""
    for path, value in ((_POLICY, "auto-movable"), (f"{_MEMORY}/auto_online_blocks", "online")):
        with suppress(OSError):  # a kernel without memory hot-plug
            _write(path, value)


def _online_all() -> None:
    for directory, file, is_off, value in ((_CPUS, "online", "0", "1"), (_MEMORY, "state", "offline", "online")):
        with suppress(FileNotFoundError):
            for name in os.listdir(directory):
                path = f"{directory}/{name}/{file}"
                # What refuses, or is gone meanwhile, does not count; the answer says what does.
                with suppress(OSError):
                    if name[-1].isdigit() and _read(path) == is_off:
                        _write(path, value)


def online_cpus() -> int:
    """Processors in use."""
    count = 0
    for part in _read(f"{_CPUS}/online").split(","):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count


def total_memory() -> int:
    """Bytes of memory that the kernel can use."""
    with open("/proc/meminfo", encoding="ascii") as file:
        return int(file.readline().split()[1]) * 1024


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()


def _write(path: str, value: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(value)
