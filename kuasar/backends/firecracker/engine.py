"""The Firecracker engine of a worker: a pod's machine, with everything it will ever have at its start but for what its
drives hold."""

from __future__ import annotations

import dataclasses
import os
import time
from contextlib import ExitStack
from functools import partial
from typing import ClassVar

from kuasar.agent.client import AgentClient
from kuasar.backends.base import Capability, Host, MachineSpec
from kuasar.backends.boot_setup import Setup
from kuasar.backends.firecracker import bodies
from kuasar.backends.firecracker.drives import Drives
from kuasar.backends.firecracker.facts import find_setup
from kuasar.backends.firecracker.machine import Machine, Placement
from kuasar.backends.firecracker.template import MAC, guest_of, key_of, why_not
from kuasar.backends.microvm import MicroVm
from kuasar.backends.probing import Probe, ProbeHost
from kuasar.backends.share import Share
from kuasar.backends.sizes import Size, size_for
from kuasar.backends.storage import Storage
from kuasar.backends.template import Template
from kuasar.backends.unshared.copying import copy_tree
from kuasar.backends.unshared.packing import Packer
from kuasar.backends.unshared.storage import DiskStorage
from kuasar.backends.users import vmm_user
from kuasar.core import config, log

_VERSION_SECONDS = 10.0


class Engine(MicroVm):
    """A pod in a Firecracker machine."""

    kind: ClassVar[str] = "firecracker"
    # No RESIZE: a machine has the processors and the memory that it was booted with.
    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.EXEC, Capability.TTY, Capability.PAUSE})
    shares_directories: ClassVar[bool] = False

    @classmethod
    async def probe(cls, host: ProbeHost, settings: config.Engine, deadline: float) -> Probe:
        setup = await find_setup(host, settings, deadline)
        return Probe(setup.binary, setup.version, {"image": settings.image, "image_digest": setup.image_digest})

    def __init__(self, host: Host, settings: config.Engine) -> None:
        most = min(settings.max_vcpus, bodies.MOST_VCPUS)
        super().__init__(host, dataclasses.replace(settings, max_vcpus=most))
        self._user = vmm_user(settings, os.path.basename(host.directory))
        self._machine = Machine(host, self.vmm, self._user)
        self._drives = Drives(host, self._machine, self._ask_agent)
        self._packer = Packer(host, settings.mkfs_erofs, settings.cache_dir)

    def tap_owner(self, sandbox_id: str) -> int | None:
        return self._user.uid

    # -- start ---------------------------------------------------------------------------------------------------------

    async def boot(self, spec: MachineSpec, deadline: float) -> bool:
        limit = min(deadline, time.monotonic() + _VERSION_SECONDS)
        setup = await find_setup(self.host, self.settings, limit)
        self.host.lap("setup")
        size = self._size_of(spec)
        reason = why_not(spec, size, self.settings)
        if not reason:
            key, clone = key_of(setup, self.settings), partial(self._clone, spec, setup, deadline)
            reason = await self.start_as_clone(key, "kuasar.backends.firecracker.maker", clone)
            if not reason:
                return True
        else:
            self.host.remember(template="off")
        log.info("booting", why=reason)
        counts = bodies.split_drives(self.settings.device_ports, len(spec.nics))
        self.host.remember(start=f"boot: {reason}", size=[size.vcpus, size.memory_bytes])
        self.host.remember(drive_counts=counts, drives={})
        guest = bodies.Guest(setup.command_line, size.vcpus, size.memory_bytes, *counts, spec.nics)
        await self._machine.boot(setup, guest, self._placement(spec), deadline)
        self.host.lap("vmm")
        return False

    async def _clone(self, spec: MachineSpec, setup: Setup, deadline: float, template: Template) -> None:
        guest = guest_of(setup, self.settings)
        self.host.remember(size=[guest.vcpus, guest.memory_bytes])
        self.host.remember(drive_counts=(guest.read_only_drives, guest.writable_drives), drives={}, was=MAC)
        taps = tuple(nic.tap for nic in spec.nics)
        with ExitStack() as stack:
            files = (template.open_state(), template.open_memory())
            for fd in files:
                stack.callback(os.close, fd)
            await self._machine.restore(setup, files, taps, self._placement(spec), deadline)
        self.host.lap("vmm")

    async def forget_clone(self) -> None:
        await super().forget_clone()
        self.host.remember(was="")

    def _size_of(self, spec: MachineSpec) -> Size:
        """What the pod will ever have."""
        base = Size(1, self.settings.memory_mib << 20)
        return size_for(spec.vcpus, spec.memory_bytes, base, self.settings)

    def _placement(self, spec: MachineSpec) -> Placement:
        return Placement(spec.log_path, spec.console_path, spec.cgroup, spec.netns, self._user)

    async def settle(self, agent: AgentClient, spec: MachineSpec, deadline: float) -> None:
        was = self.host.machine.get("was")
        if was and spec.network:  # a clone's card has the template's address
            (card,) = spec.network["interfaces"]
            spec = dataclasses.replace(spec, network={**spec.network, "interfaces": [{**card, "was": was}]})
        await super().settle(agent, spec, deadline)
        await copy_tree(self._ask_agent, f"{self.host.directory}/files", "files", "files", deadline)
        self.host.lap("copies")

    # -- control -------------------------------------------------------------------------------------------------------

    async def reconnect(self, deadline: float) -> None:
        await self._machine.reconnect(deadline)

    async def open_channel(self, deadline: float) -> AgentClient:
        return await self._machine.open_channel(deadline)

    async def ask_to_quit(self) -> None:
        """Firecracker has no such request."""

    async def disconnect(self) -> None:
        self._packer.unmount_all()
        self._machine.disconnect()

    async def pause(self) -> None:
        await self._machine.api.do(bodies.pause())

    async def resume(self) -> None:
        await self._machine.api.do(bodies.resume())

    # -- devices -------------------------------------------------------------------------------------------------------

    def _make_storage(self) -> Storage:
        return DiskStorage(
            self.host,
            self.kind,
            self,
            self._packer,
            self._ask_agent,
            layers_are_disks=False,  # there are few drives
        )

    async def attach_share(self, share: Share, deadline: float) -> None:
        self.refuse(Capability.ATTACH)

    async def attach_nics(self, spec: MachineSpec, deadline: float) -> None:
        """They were there at boot."""

    async def attach_disk(self, serial: str, path: str, read_only: bool, deadline: float | None) -> None:
        await self._drives.fill(serial, path, read_only, deadline)

    async def detach_disk(self, serial: str) -> None:
        await self._drives.empty(serial)

    async def grow(self, size: Size, deadline: float) -> None:
        self.refuse(Capability.RESIZE)
