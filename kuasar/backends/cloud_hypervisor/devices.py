"""What is plugged into a running machine: disks, network cards, the share, processors and memory.

Each is called by our name for it, so ``vm.info`` tells what is there: whatever an earlier worker, or a request that was
repeated, has plugged in already is left as it is. The device tree counts, not the configuration: a device is in it
until the guest has let go.
"""

from __future__ import annotations

import os
import time

from kuasar.backends.base import Nic
from kuasar.backends.cloud_hypervisor import bodies
from kuasar.backends.cloud_hypervisor.machine import Machine
from kuasar.backends.share import SOCKET
from kuasar.backends.sizes import Size
from kuasar.core.aio import Loop
from kuasar.core.errors import BackendFailed

_UNPLUG_SECONDS = 10.0
_POLL_SECONDS = 0.02


class Devices:
    """The devices of one machine. One operation at a time is up to the caller."""

    def __init__(self, loop: Loop, machine: Machine) -> None:
        self._loop = loop
        self._machine = machine

    async def plug_disk(self, name: str, path: str, read_only: bool, deadline: float | None) -> None:
        """A disk with the serial number ``name`` on the block device or image file at ``path``."""
        if await self._is_there(name, deadline):
            return
        disk, keeper = self._machine.jail.add_disk(name, path, read_only=read_only)
        try:
            await self._machine.api.put(
                "vm.add-disk", bodies.disk(name, disk.path, read_only=read_only), deadline=deadline
            )
        except BaseException:
            self._machine.jail.remove_disk(name)
            raise
        finally:
            os.close(keeper)

    async def plug_nic(self, name: str, nic: Nic, deadline: float) -> None:
        """A network card on open taps, with a pair of queues for each."""
        if not await self._is_there(name, deadline):
            await self._machine.api.put("vm.add-net", bodies.net(name, nic), nic.taps, deadline)

    async def plug_share(self, name: str, deadline: float) -> None:
        """The shared directory, whose server's socket is in the VMM's directory."""
        if not await self._is_there(name, deadline):
            await self._machine.api.put("vm.add-fs", bodies.share(name, SOCKET), deadline=deadline)

    async def resize(self, size: Size, deadline: float) -> None:
        """So many processors and so much memory altogether."""
        await self._machine.api.put("vm.resize", bodies.resize(size.vcpus, size.memory_bytes), deadline=deadline)

    async def unplug(self, name: str) -> None:
        """Have the guest let go of a disk; harmless when it is not there. Raises :class:`BackendFailed` if it does
        not."""
        deadline = time.monotonic() + _UNPLUG_SECONDS
        if await self._is_there(name, deadline):
            await self._machine.api.put("vm.remove-device", bodies.remove(name), deadline=deadline)
            while await self._is_there(name, deadline):
                if time.monotonic() + _POLL_SECONDS > deadline:
                    raise BackendFailed(f"the guest does not let go of disk {name}")
                await self._loop.sleep(_POLL_SECONDS)
        self._machine.jail.remove_disk(name)

    async def _is_there(self, name: str, deadline: float | None) -> bool:
        info = await self._machine.api.get("vm.info", deadline)
        return name in (info.get("device_tree") or {})
