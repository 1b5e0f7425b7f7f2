"""The drives of a machine: made empty at boot, filled while it runs.

Firecracker plugs no drive into a running machine (but for a developer preview of PCI hot-plug since 1.16, which the
guest is not even told of). So a machine boots with drives that have nothing in them, some of them read-only for ever,
and what they hold is exchanged: ``PATCH /drives``, then the guest is asked whether its kernel has noticed.
"""

from __future__ import annotations

import os

from kuasar.backends.base import Host
from kuasar.backends.firecracker import bodies
from kuasar.backends.firecracker.machine import Machine
from kuasar.backends.unshared.copying import AskAgent
from kuasar.core.errors import ResourceExhausted


class Drives:
    """The drives of one machine, by our names for what is in them. One operation at a time is up to the caller. What
    is in which drive is in the sandbox's record before it is put there."""

    def __init__(self, host: Host, machine: Machine, ask_agent: AskAgent) -> None:
        self._host = host
        self._machine = machine
        self._ask_agent = ask_agent

    async def fill(self, name: str, path: str, read_only: bool, deadline: float | None) -> None:
        """Put the block device or image file at ``path`` into a free drive; the guest finds it as ``name``. Raises
        :class:`ResourceExhausted` when there is none."""
        drive, is_filled = self._filled().get(name, ("", False))
        if is_filled:
            return  # by an earlier worker
        if not drive:
            drive = self._free_drive(name, read_only)
            self._remember(name, drive, False)
        disk, keeper = self._machine.jail.add_disk(name, path, read_only=read_only)
        try:
            await self._machine.api.do(bodies.swap(drive, disk.path), deadline)
        finally:
            os.close(keeper)
        serial = bodies.serial_of(disk.status.st_dev, disk.status.st_rdev, disk.status.st_ino)
        request = {"name": name, "serial": serial, "bytes": disk.bytes}
        await self._ask_agent("guest.disk", request, deadline)
        self._remember(name, drive, True)

    async def empty(self, name: str) -> None:
        """Take out what is called ``name``, which the guest does not use any more; harmless when it is out."""
        drive, _ = self._filled().get(name, ("", False))
        if not drive:
            return
        await self._machine.api.do(bodies.swap(drive, bodies.EMPTY))
        self._machine.jail.remove_disk(name)
        self._host.remember(drives={known: where for known, where in self._filled().items() if known != name})

    def _filled(self) -> dict[str, tuple[str, bool]]:
        """Name -> drive, and whether the guest has seen it."""
        return {name: (drive, seen) for name, (drive, seen) in self._host.machine.get("drives", {}).items()}

    def _remember(self, name: str, drive: str, seen: bool) -> None:
        self._host.remember(drives={**self._filled(), name: (drive, seen)})

    def _free_drive(self, name: str, read_only: bool) -> str:
        read_only_count, writable_count = self._host.machine.get("drive_counts", (0, 0))
        names = bodies.read_only_names(read_only_count) if read_only else bodies.writable_names(writable_count)
        taken = {drive for drive, _ in self._filled().values()}
        free = [drive for drive in names if drive not in taken]
        if not free:
            kind = "read-only" if read_only else "writable"
            raise ResourceExhausted(
                f"all {len(names)} {kind} drives of the machine are taken, {name} has none (device_ports of its engine)"
            )
        return free[0]
