"""The QEMU engine of a worker: a pod's machine, cloned from a template where there is one, else booted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from kuasar.agent.client import AgentClient
from kuasar.backends.base import Host, MachineSpec
from kuasar.backends.channels import VHOST_USER_VSOCK
from kuasar.backends.microvm import MicroVm
from kuasar.backends.probing import Probe, ProbeHost, require_program
from kuasar.backends.processes import HeldProcess
from kuasar.backends.qemu.channel import NOT_IN_A_TEMPLATE
from kuasar.backends.qemu.devices import Devices
from kuasar.backends.qemu.facts import Setup, find_setup
from kuasar.backends.qemu.machine import Machine, Placement
from kuasar.backends.share import Share
from kuasar.backends.sizes import Size
from kuasar.backends.storage import Storage
from kuasar.backends.template import Template
from kuasar.backends.unshared.copying import copy_tree
from kuasar.backends.unshared.packing import Packer
from kuasar.backends.unshared.storage import DiskStorage
from kuasar.backends.users import user_of
from kuasar.core import config, log


class Engine(MicroVm):
    """A pod in a QEMU machine."""

    kind: ClassVar[str] = "qemu"

    @classmethod
    async def probe(cls, host: ProbeHost, settings: config.Engine, deadline: float) -> Probe:
        setup = await find_setup(host, settings)
        if settings.shared_fs == "virtiofs":
            require_program(settings.virtiofsd, 'name it with `virtiofsd` of the engine, or set shared_fs = "none"')
        shape = setup.shape
        return Probe(
            setup.binary,
            shape.qemu_version,
            {
                "accel": shape.accel,
                "cpu": shape.cpu,
                "image": setup.image,
                "image_digest": shape.image_digest,
                "channel": shape.channel,
            },
        )

    def __init__(self, host: Host, settings: config.Engine) -> None:
        super().__init__(host, settings)
        self._machine = Machine(host, self.vmm, self._on_event)
        self._packer = Packer(host, settings.mkfs_erofs, settings.cache_dir)
        self._devices = Devices(host, self._machine, settings.device_ports, settings.huge_pages)

    def _on_event(self, name: str, data: dict[str, Any]) -> None:
        log.debug("QEMU", event=name, data=data)
        if name == "SHUTDOWN":  # by whom: guest-reset, guest-shutdown, guest-panic, host-signal, host-qmp-quit, ...
            self.told = f"QEMU shuts down: {data.get('reason', 'it does not say why')}"
            log.info("the machine shuts down", reason=data.get("reason"))
        self._devices.on_event(name, data)

    # -- start ---------------------------------------------------------------------------------------------------------

    async def boot(self, spec: MachineSpec, deadline: float) -> bool:
        setup = await find_setup(self.host, self.settings)
        self.host.lap("setup")
        why_not = NOT_IN_A_TEMPLATE if setup.shape.channel == VHOST_USER_VSOCK else "template = false"
        if self.settings.template and setup.shape.channel != VHOST_USER_VSOCK:
            clone = partial(self._clone, spec, setup, deadline)
            why_not = await self.start_as_clone(setup.shape.key, "kuasar.backends.qemu.maker", clone)
            if not why_not:
                return True
        else:
            self.host.remember(template="off")
        log.info("booting", why=why_not)
        self.host.remember(start=f"boot: {why_not}")
        await self._machine.boot(setup, _placement(spec, setup), deadline)
        self._remember_size(setup)
        self.host.lap("vmm")
        return False

    async def _clone(self, spec: MachineSpec, setup: Setup, deadline: float, template: Template) -> None:
        shared = self.host.machine["shared_fs"] == "virtiofs"
        await self._machine.clone(setup, template, _placement(spec, setup), shared=shared, deadline=deadline)
        self._remember_size(setup)

    def _remember_size(self, setup: Setup) -> None:
        self.host.remember(size=[1, setup.shape.memory_bytes])

    # -- control -------------------------------------------------------------------------------------------------------

    @property
    def helpers(self) -> Mapping[str, HeldProcess]:
        helper = self._machine.channel.helper
        of_channel = {} if helper is None else {"the vsock of the machine (vhost-device-vsock)": helper}
        return {**super().helpers, **of_channel}

    async def reconnect(self, deadline: float) -> None:
        await self._machine.reconnect(deadline)

    async def open_channel(self, deadline: float) -> AgentClient:
        return await self._machine.open_channel(deadline)

    async def ask_to_quit(self) -> None:
        await self._machine.quit()

    async def disconnect(self) -> None:
        self._packer.unmount_all()
        await self._machine.disconnect()

    async def pause(self) -> None:
        await self._machine.monitor.execute("stop")

    async def resume(self) -> None:
        await self._machine.monitor.execute("cont")

    # -- without a share -----------------------------------------------------------------------------------------------

    async def settle(self, agent: AgentClient, spec: MachineSpec, deadline: float) -> None:
        await super().settle(agent, spec, deadline)
        if self.host.machine.get("shared_fs") == "none":
            await copy_tree(self._ask_agent, f"{self.host.directory}/files", "files", "files", deadline)
            self.host.lap("copies")

    def _make_storage(self) -> Storage:
        if self.host.machine.get("shared_fs") != "none":
            return super()._make_storage()
        return DiskStorage(self.host, self.kind, self, self._packer, self._ask_agent, layers_are_disks=True)

    # -- devices -------------------------------------------------------------------------------------------------------

    async def attach_share(self, share: Share, deadline: float) -> None:
        with share.connect() as connection:
            await self._devices.plug_share("share", connection.fileno(), deadline)

    async def attach_nics(self, spec: MachineSpec, deadline: float) -> None:
        for index, nic in enumerate(spec.nics):
            await self._devices.plug_nic(f"nic{index}", nic, deadline)

    async def attach_disk(self, serial: str, path: str, read_only: bool, deadline: float | None) -> None:
        flags = os.O_RDONLY if read_only else os.O_RDWR
        fd = os.open(path, flags | os.O_CLOEXEC)
        try:
            await self._devices.plug_disk(serial, fd, read_only, deadline)
        finally:
            os.close(fd)

    async def detach_disk(self, serial: str) -> None:
        await self._devices.unplug(serial)

    async def grow(self, size: Size, deadline: float) -> None:
        now = self.size
        if size.vcpus > now.vcpus:
            await self._devices.plug_vcpus(size.vcpus - now.vcpus, deadline)
        if size.memory_bytes > now.memory_bytes:
            base = self.settings.memory_mib << 20
            most = (self.settings.max_memory_mib << 20) - base
            await self._devices.set_memory(size.memory_bytes - base, most, deadline)


def _placement(spec: MachineSpec, setup: Setup) -> Placement:
    return Placement(
        name=f"kuasar-{spec.sandbox_id}",
        log_path=spec.log_path,
        console_path=spec.console_path,
        cgroup=spec.cgroup,
        user=user_of(spec.sandbox_id, setup.shape.accel),
    )
