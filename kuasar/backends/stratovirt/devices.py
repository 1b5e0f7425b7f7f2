"""Disks that are plugged into a running StratoVirt machine.

On a ``q35`` a disk goes behind a free PCI Express port, and the port is free again when the guest has let go of the
disk. A ``microvm`` has its disks since the boot, empty: one gets a content and the guest is asked whether its kernel
has noticed; it is emptied without asking anybody. What is where is in the sandbox's record before it is put there.
"""

from __future__ import annotations

import os
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, ClassVar

from kuasar.backends.base import Host
from kuasar.backends.qmp import Monitor
from kuasar.backends.stratovirt.argv import MICROVM_DISKS
from kuasar.core.aio import Future
from kuasar.core.errors import BackendFailed, DeadlineExceeded, ResourceExhausted, wrap

AskAgent = Callable[[str, Mapping[str, Any], float | None], Awaitable[Any]]
_UNPLUG_SECONDS = 10.0
_UNDER_WAY_SECONDS = 2.0


class Devices(ABC):
    """The disks of one machine, by our names for them. One operation at a time is up to the caller."""

    places: ClassVar[str]
    """What disks are put into, for people."""

    def __init__(self, host: Host, monitor: Callable[[], Monitor], count: int, first: int) -> None:
        """``count`` places from ``first`` on; ``monitor`` gives the open one, or raises BackendFailed."""
        self._host = host
        self._monitor = monitor
        self._numbers = range(first, first + count)

    def on_event(self, name: str, data: Mapping[str, Any]) -> None:  # noqa: B027 - a microvm has nothing to tell
        """What the monitor tells."""

    async def plug(self, name: str, path: str, read_only: bool, deadline: float | None) -> None:
        """Put the block device or image file at ``path`` in; the guest finds it as ``name``. Raises
        :class:`ResourceExhausted` when there is no place for it."""
        place, is_there = self._known().get(name, (0, False))
        if is_there:
            return  # by an earlier worker
        if place:
            await self.unplug(name)  # an earlier worker did not come to the end of it
        place = self._take(name)
        try:
            file = {"driver": "file", "filename": path, "aio": "off"}
            node = {
                "node-name": name,
                "driver": "raw",
                "read-only": read_only,
                "cache": {"direct": False},
                "file": file,
            }
            await self._monitor().execute("blockdev-add", node, deadline)
            await self._add(name, place, path, deadline)
        except BaseException:
            await self.unplug(name)
            raise
        self._remember(name, place, True)

    async def unplug(self, name: str) -> None:
        """Take it out and free its place. Harmless when it is not there."""
        if name not in self._known():
            return
        await self._remove(name, self._known()[name][1])
        self._host.remember(disks={known: where for known, where in self._known().items() if known != name})

    @abstractmethod
    async def _add(self, name: str, place: int, path: str, deadline: float | None) -> None:
        """Make the device on the node ``name``."""

    @abstractmethod
    async def _remove(self, name: str, was_there: bool) -> None:
        """Device and node, as far as they are there. ``was_there``: they were, until somebody took them out."""

    def _known(self) -> dict[str, tuple[int, bool]]:
        """Name -> its place, and whether it is all there."""
        return {name: (place, seen) for name, (place, seen) in self._host.machine.get("disks", {}).items()}

    def _remember(self, name: str, place: int, is_there: bool) -> None:
        self._host.remember(disks={**self._known(), name: (place, is_there)})

    def _take(self, name: str) -> int:
        taken = {place for place, _ in self._known().values()}
        free = [number for number in self._numbers if number not in taken]
        if not free:
            raise ResourceExhausted(f"all {len(self._numbers)} {self.places} of the machine are taken, {name} has none")
        self._remember(name, free[0], False)
        return free[0]


class Replaceable(Devices):
    """Of a ``microvm``: the root disk is the first of its disks."""

    places: ClassVar[str] = "disks (that is what a microvm has)"

    def __init__(self, host: Host, monitor: Callable[[], Monitor], ask_agent: AskAgent) -> None:
        super().__init__(host, monitor, MICROVM_DISKS - 1, 1)
        self._ask_agent = ask_agent

    async def _add(self, name: str, place: int, path: str, deadline: float | None) -> None:
        device = {"id": name, "driver": "virtio-blk-mmio", "addr": hex(place)}
        await self._monitor().execute("device_add", device, deadline)
        # Such a disk has no serial number. Its kernel's name follows from its place: all are there since the boot.
        disk = {"name": name, "serial": f"vd{chr(ord('a') + place)}", "bytes": _size_of(path)}
        await self._ask_agent("guest.disk", disk, deadline)

    async def _remove(self, name: str, was_there: bool) -> None:
        with suppress(BackendFailed):  # it was never put in
            await self._monitor().execute("device_del", {"id": name})


class Ports(Devices):
    """Of a ``q35``."""

    places: ClassVar[str] = "ports (device_ports of its engine)"

    def __init__(self, host: Host, monitor: Callable[[], Monitor], count: int) -> None:
        super().__init__(host, monitor, count, 1)  # 0 is no place
        self._deleted: dict[str, Future[None]] = {}

    def on_event(self, name: str, data: Mapping[str, Any]) -> None:
        """Hears of disks that the guest has let go."""
        if name == "DEVICE_DELETED" and data.get("device") in self._deleted:
            self._deleted[data["device"]].set_result(None)

    async def _add(self, name: str, place: int, path: str, deadline: float | None) -> None:
        where = {"bus": f"port{place - 1}", "addr": "0x0"}
        device = {"id": name, "driver": "virtio-blk-pci", "drive": name, "serial": name, **where}
        await self._monitor().execute("device_add", device, deadline)

    async def _remove(self, name: str, was_there: bool) -> None:
        gone = self._deleted[name] = self._host.loop.future()
        try:
            await self._take_out(name, gone, was_there)
        finally:
            del self._deleted[name]
        with suppress(BackendFailed):  # it was never made
            await self._monitor().execute("blockdev-del", {"node-name": name})

    async def _take_out(self, name: str, gone: Future[None], was_there: bool) -> None:
        loop, what = self._host.loop, f"the removal of disk {name}"
        try:
            await self._monitor().execute("device_del", {"id": name})
        except BackendFailed:
            # It was never put in; or an earlier worker has asked already, and the guest has let go of it or will soon.
            if was_there:
                with suppress(DeadlineExceeded):
                    await loop.wait_for(gone, time.monotonic() + _UNDER_WAY_SECONDS, what)
            return
        try:
            await loop.wait_for(gone, time.monotonic() + _UNPLUG_SECONDS, what)
        except DeadlineExceeded as exc:
            raise BackendFailed(f"the guest does not let go of disk {name}") from exc


def _size_of(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if stat.S_ISBLK(os.fstat(fd).st_mode):
                return os.lseek(fd, 0, os.SEEK_END)
            return os.fstat(fd).st_size // 512 * 512
        finally:
            os.close(fd)
    except OSError as exc:
        raise wrap(exc, f"the disk {path}") from exc
