"""The StratoVirt engine of a worker: a pod's machine, of the size that the pod asks for, booted."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from kuasar.agent.client import AgentClient
from kuasar.backends.base import Capability, Host, MachineSpec
from kuasar.backends.microvm import MicroVm
from kuasar.backends.probing import Probe, ProbeHost, require_program
from kuasar.backends.rest import socket_path
from kuasar.backends.share import Share
from kuasar.backends.sizes import Size, size_for
from kuasar.backends.stratovirt.argv import MICROVM, MICROVM_NICS, Card, Guest
from kuasar.backends.stratovirt.devices import Devices, Ports, Replaceable
from kuasar.backends.stratovirt.facts import Setup, find_setup, require_sayable
from kuasar.backends.stratovirt.machine import Machine, Placement
from kuasar.core import config, log
from kuasar.core.errors import ResourceExhausted, Unavailable

_VERSION_SECONDS = 10.0
_SMALLEST_MEMORY_MIB = 128
_MOST_Q35_NICS = 8
_FIRST_FD = 3


class Engine(MicroVm):
    """A pod in a StratoVirt machine."""

    kind: ClassVar[str] = "stratovirt"
    # No RESIZE: a machine has the processors and the memory that it was booted with.
    capabilities: ClassVar[frozenset[Capability]] = MicroVm.capabilities - {Capability.RESIZE}
    console_is_appended_to: ClassVar[bool] = False

    @classmethod
    async def probe(cls, host: ProbeHost, settings: config.Engine, deadline: float) -> Probe:
        setup = await find_setup(host, settings, deadline)
        if settings.shared_fs == "virtiofs":
            require_program(settings.virtiofsd, 'name it with `virtiofsd` of the engine, or set shared_fs = "none"')
        details = {"machine": settings.machine, "image": settings.image, "image_digest": setup.image_digest}
        return Probe(setup.binary, setup.version, details)

    def __init__(self, host: Host, settings: config.Engine) -> None:
        super().__init__(host, settings)
        self._machine = Machine(host, self.vmm, self._on_event)
        self._made_devices: Devices | None = None

    @property
    def _devices(self) -> Devices:
        """Made when the machine's kind is known: a new sandbox has no record yet."""
        if self._made_devices is None:
            if self._is_microvm:
                self._made_devices = Replaceable(self.host, lambda: self._machine.monitor, self._ask_agent)
            else:
                self._made_devices = Ports(self.host, lambda: self._machine.monitor, self.settings.device_ports)
        return self._made_devices

    @property
    def _is_microvm(self) -> bool:
        """Of an adopted machine, what it was made as."""
        return str(self.host.machine.get("machine", self.settings.machine)) == MICROVM

    @property
    def max_queues(self) -> int:
        return 1 if self._is_microvm else super().max_queues

    @property
    def info(self) -> Mapping[str, str]:
        return {**super().info, "machine": str(self.host.machine.get("machine", ""))}

    def _on_event(self, name: str, data: dict[str, Any]) -> None:
        log.debug("StratoVirt", event=name, data=data)
        self._devices.on_event(name, data)

    async def _ask_agent(self, op: str, body: Mapping[str, Any], deadline: float | None) -> Any:
        if self._agent is None:
            raise Unavailable(f"{op}: the machine's agent is not connected")
        return await self._agent.call(op, dict(body), deadline=deadline)

    # -- start ---------------------------------------------------------------------------------------------------------

    async def boot(self, spec: MachineSpec, deadline: float) -> bool:
        limit = min(deadline, time.monotonic() + _VERSION_SECONDS)
        setup = await find_setup(self.host, self.settings, limit)
        self.host.lap("setup")
        size = self._size_of(spec)
        machine = self.settings.machine
        self.host.remember(machine=machine, start="boot", size=[size.vcpus, size.memory_bytes], disks={})
        guest, fds = self._guest(setup, size, spec)
        await self._machine.boot(setup.binary, guest, Placement(spec.log_path, spec.cgroup), fds, deadline)
        self.host.lap("vmm")
        return False

    def _size_of(self, spec: MachineSpec) -> Size:
        """What the pod will ever have."""
        base = Size(1, max(self.settings.memory_mib, _SMALLEST_MEMORY_MIB) << 20)
        return size_for(spec.vcpus, spec.memory_bytes, base, self.settings)

    def _guest(self, setup: Setup, size: Size, spec: MachineSpec) -> tuple[Guest, list[int]]:
        most = MICROVM_NICS if self._is_microvm else _MOST_Q35_NICS
        if len(spec.nics) > most:
            raise ResourceExhausted(
                f"the pod has {len(spec.nics)} network interfaces, a StratoVirt {self.settings.machine} at most {most}"
            )
        fds: list[int] = []
        cards = []
        for index, nic in enumerate(spec.nics):
            numbers = range(_FIRST_FD + len(fds), _FIRST_FD + len(fds) + len(nic.taps))
            cards.append(Card(f"nic{index}", nic.mac, tuple(numbers)))
            fds += nic.taps
        shares = self.host.machine.get("shared_fs") == "virtiofs"
        guest = Guest(
            name=f"kuasar-{spec.sandbox_id}",
            machine=self.settings.machine,
            vcpus=size.vcpus,
            memory_bytes=size.memory_bytes,
            kernel=setup.kernel,
            initrd=setup.initrd,
            root=setup.root,
            firmware=setup.firmware,
            command_line=setup.command_line,
            console=require_sayable(spec.console_path),
            share=require_sayable(socket_path(*os.path.split(self._machine.share_path))) if shares else "",
            cards=tuple(cards),
            ports=self.settings.device_ports,
        )
        return guest, fds

    # -- control -------------------------------------------------------------------------------------------------------

    async def reconnect(self, deadline: float) -> None:
        await self._machine.reconnect(deadline)

    async def open_channel(self, deadline: float) -> AgentClient:
        return await self._machine.open_channel(deadline)

    async def ask_to_quit(self) -> None:
        await self._machine.quit()

    async def disconnect(self) -> None:
        self._machine.disconnect()

    async def pause(self) -> None:
        await self._machine.monitor.execute("stop")

    async def resume(self) -> None:
        await self._machine.monitor.execute("cont")

    # -- devices -------------------------------------------------------------------------------------------------------

    async def attach_share(self, share: Share, deadline: float) -> None:
        """It was there at boot: StratoVirt plugs in none."""

    async def attach_nics(self, spec: MachineSpec, deadline: float) -> None:
        """They were there at boot."""

    async def attach_disk(self, serial: str, path: str, read_only: bool, deadline: float | None) -> None:
        await self._devices.plug(serial, path, read_only, deadline)

    async def detach_disk(self, serial: str) -> None:
        await self._devices.unplug(serial)

    async def grow(self, size: Size, deadline: float) -> None:
        self.refuse(Capability.RESIZE)
