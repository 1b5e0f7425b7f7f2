"""What is plugged into a running QEMU machine: disks, network interfaces, the share, processors, memory.

Devices sit behind PCI Express ports that the machine was made with. Which port holds what is in the sandbox's record
before it is plugged in, so that a successor knows; a port is free again when QEMU says that the guest has let go of
the device.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from kuasar.backends.base import Host, Nic
from kuasar.backends.qemu.machine import HUGE_PAGE_BYTES, Machine
from kuasar.backends.share import TAG
from kuasar.core.aio import Future
from kuasar.core.errors import BackendFailed, DeadlineExceeded, ResourceExhausted

_UNPLUG_SECONDS = 10.0
_MEMORY = "memory"
_QUEUE_SIZE = 1024


class Devices:
    """The devices of one machine, by our names for them. One operation at a time is up to the caller."""

    def __init__(self, host: Host, machine: Machine, ports: int, huge_pages: bool = False) -> None:
        self._host = host
        self._count = ports
        self._huge_pages = huge_pages
        self._machine = machine
        self._unplugged: dict[str, Future[None]] = {}

    def on_event(self, name: str, data: dict[str, Any]) -> None:
        """Tells of devices that the guest has let go."""
        if name == "DEVICE_DELETED" and data.get("device") in self._unplugged:
            self._unplugged[data["device"]].set_result(None)

    # -- plugging in ---------------------------------------------------------------------------------------------------

    async def plug_disk(self, name: str, fd: int, read_only: bool, deadline: float | None) -> None:
        """A disk with the serial number ``name`` on the open block device or image file ``fd``."""
        monitor = self._machine.monitor
        if name in self._ports():
            if await self._is_plugged(name, deadline):
                return
            await self.unplug(name)  # an earlier worker did not come to the end of it
        driver = "host_device" if stat.S_ISBLK(os.fstat(fd).st_mode) else "file"
        port = self._take_port(name)
        try:
            file = {"driver": driver, "filename": f"/dev/fdset/{self._fdset(port)}", "locking": "off"}
            await monitor.add_to_set(self._fdset(port), fd, deadline)
            node = {"driver": "raw", "node-name": name, "read-only": read_only, "file": file}
            await monitor.execute("blockdev-add", node, deadline)
            device = {"driver": "virtio-blk-pci", "drive": name, "serial": name}
            await self._add(name, port, device, deadline)
        except BaseException:
            await self.unplug(name)
            raise

    async def plug_nic(self, name: str, nic: Nic, deadline: float) -> None:
        """A network interface on open taps, with a queue for each."""
        monitor = self._machine.monitor
        port = self._take_port(name)
        for index, tap in enumerate(nic.taps):
            await monitor.give(f"{name}-{index}", tap, deadline)
        fds = ":".join(f"{name}-{index}" for index in range(len(nic.taps)))
        queues = len(nic.taps)
        await monitor.execute("netdev_add", {"type": "tap", "id": name, "fds": fds}, deadline)
        device: dict[str, object] = {"driver": "virtio-net-pci", "netdev": name, "mac": nic.mac, "host_mtu": nic.mtu}
        if queues > 1:
            device |= {"mq": True, "vectors": 2 * queues + 2}
        await self._add(name, port, device, deadline)

    async def plug_share(self, name: str, fd: int, deadline: float) -> None:
        """The shared directory behind the connected vhost-user socket ``fd``."""
        monitor = self._machine.monitor
        port = self._take_port(name)
        await monitor.give(name, fd, deadline)
        address = {"type": "fd", "data": {"str": name}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        await monitor.execute("chardev-add", {"id": name, "backend": backend}, deadline)
        device = {"driver": "vhost-user-fs-pci", "chardev": name, "tag": TAG, "queue-size": _QUEUE_SIZE}
        await self._add(name, port, device, deadline)

    async def plug_vcpus(self, count: int, deadline: float) -> None:
        """That many processors more. Raises :class:`ResourceExhausted` when the machine has no room for them."""
        monitor = self._machine.monitor
        slots = list(await monitor.execute("query-hotpluggable-cpus", deadline=deadline))
        free = [slot for slot in slots if "qom-path" not in slot]
        if len(free) < count:
            raise ResourceExhausted(f"the machine has room for {len(free)} processors more, not for {count}")
        for slot in sorted(free, key=lambda slot: sorted(slot["props"].items()))[:count]:
            number = "-".join(str(value) for _, value in sorted(slot["props"].items()))
            await monitor.execute(
                "device_add", {"driver": slot["type"], "id": f"cpu{number}", **slot["props"]}, deadline
            )

    async def set_memory(self, size: int, most: int, deadline: float) -> None:
        """``size`` bytes beside the memory that the machine was made with, now and later at most ``most``."""
        monitor = self._machine.monitor
        if _MEMORY not in self._ports():
            port = self._take_port(_MEMORY)
            backend: dict[str, object] = {"qom-type": "memory-backend-memfd", "id": "ram1", "size": most}
            backend |= {"share": True, "reserve": False}
            if self._huge_pages:
                backend |= {"hugetlb": True, "hugetlbsize": HUGE_PAGE_BYTES}
            await monitor.execute("object-add", backend, deadline)
            device: dict[str, object] = {"driver": "virtio-mem-pci", "memdev": "ram1", "requested-size": size}
            device |= {"prealloc": True} if self._huge_pages else {}  # else QEMU would die for want of a page
            await self._add(_MEMORY, port, device, deadline)
            return
        path = f"/machine/peripheral/{_MEMORY}"
        await monitor.execute("qom-set", {"path": path, "property": "requested-size", "value": size}, deadline)

    async def _is_plugged(self, name: str, deadline: float | None) -> bool:
        known = await self._machine.monitor.execute("qom-list", {"path": "/machine/peripheral"}, deadline)
        return any(each["name"] == name for each in known)

    async def _add(self, name: str, port: int, device: Mapping[str, object], deadline: float | None) -> None:
        await self._machine.monitor.execute("device_add", {**device, "id": name, "bus": f"port{port}"}, deadline)

    # -- pulling out ---------------------------------------------------------------------------------------------------

    async def unplug(self, name: str) -> None:
        """Have the guest let go of a disk and free its port. Harmless when it is not there."""
        port = self._ports().get(name)
        if port is None:
            return
        monitor = self._machine.monitor
        gone = self._unplugged[name] = self._host.loop.future()
        try:
            with suppress(BackendFailed):  # it was never plugged in
                await monitor.execute("device_del", {"id": name})
                await self._host.loop.wait_for(gone, time.monotonic() + _UNPLUG_SECONDS, f"the removal of disk {name}")
        except DeadlineExceeded as exc:
            raise BackendFailed(f"the guest does not let go of disk {name}") from exc
        finally:
            del self._unplugged[name]
        for command, arguments in (
            ("blockdev-del", {"node-name": name}),
            ("remove-fd", {"fdset-id": self._fdset(port)}),
        ):
            with suppress(BackendFailed):  # it had not come so far
                await monitor.execute(command, arguments)
        self._release_port(name)

    # -- ports and descriptors -----------------------------------------------------------------------------------------

    def _ports(self) -> dict[str, int]:
        return dict(self._host.machine.get("ports", {}))

    def _take_port(self, name: str) -> int:
        ports = self._ports()
        free = sorted(set(range(self._count)) - set(ports.values()))
        if not free:
            raise ResourceExhausted(
                f"all {self._count} ports of the machine are taken, {name} has none (device_ports of its engine)"
            )
        self._host.remember(ports={**ports, name: free[0]})
        return free[0]

    def _release_port(self, name: str) -> None:
        self._host.remember(ports={known: port for known, port in self._ports().items() if known != name})

    @staticmethod
    def _fdset(port: int) -> int:
        """Sets 1 and 2 are the command line's."""
        return 100 + port
