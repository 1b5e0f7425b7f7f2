"""The Cloud Hypervisor engine of a worker: a pod's machine, restored from a template where there is one, or booted."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import partial
from typing import ClassVar

from kuasar.agent.client import AgentClient
from kuasar.backends.base import Ended, Host, MachineSpec, Stage
from kuasar.backends.boot_setup import Setup
from kuasar.backends.cloud_hypervisor.devices import Devices
from kuasar.backends.cloud_hypervisor.facts import find_setup
from kuasar.backends.cloud_hypervisor.machine import Machine, Placement
from kuasar.backends.cloud_hypervisor.state import State
from kuasar.backends.cloud_hypervisor.template import guest_of, key_of
from kuasar.backends.microvm import MicroVm
from kuasar.backends.probing import Probe, ProbeHost, require_program
from kuasar.backends.share import Share
from kuasar.backends.sizes import Size
from kuasar.backends.template import Template
from kuasar.backends.users import vmm_user
from kuasar.core import config, log
from kuasar.core.errors import KuasarError

_VERSION_SECONDS = 10.0
_KILL_SECONDS = 5.0
_BUTTON_SECONDS = 2.0


class Engine(MicroVm):
    """A pod in a Cloud Hypervisor machine."""

    kind: ClassVar[str] = "clh"

    @classmethod
    async def probe(cls, host: ProbeHost, settings: config.Engine, deadline: float) -> Probe:
        setup = await find_setup(host, settings, deadline)
        if settings.shared_fs == "virtiofs":
            require_program(settings.virtiofsd, 'name it with `virtiofsd` of the engine, or set shared_fs = "none"')
        return Probe(setup.binary, setup.version, {"image": settings.image, "image_digest": setup.image_digest})

    def __init__(self, host: Host, settings: config.Engine) -> None:
        super().__init__(host, settings)
        self._user = vmm_user(settings, os.path.basename(host.directory))
        self._machine = Machine(host, self.vmm, self._user)
        self._devices = Devices(host.loop, self._machine)

    @property
    def max_queues(self) -> int:
        """A card has no more queues than the machine has processors at its boot."""
        return 1

    # -- start ---------------------------------------------------------------------------------------------------------

    async def launch(self, spec: MachineSpec, deadline: float | None) -> None:
        self._machine.jail.open()  # the share's socket is in it
        await super().launch(spec, deadline)

    async def boot(self, spec: MachineSpec, deadline: float) -> bool:
        setup = await find_setup(self.host, self.settings, min(deadline, time.monotonic() + _VERSION_SECONDS))
        self.host.lap("setup")
        why_not = "template = false"
        if self.settings.template:
            key, clone = key_of(setup, self.settings), partial(self._clone, spec, setup, deadline)
            why_not = await self.start_as_clone(key, "kuasar.backends.cloud_hypervisor.maker", clone)
            if not why_not:
                return True
        else:
            self.host.remember(template="off")
        log.info("booting", why=why_not)
        self.host.remember(start=f"boot: {why_not}", size=[1, self.settings.memory_mib << 20])
        await self._machine.boot(setup, guest_of(setup, self.settings), self._placement(spec), deadline)
        self.host.lap("vmm")
        return False

    async def _clone(self, spec: MachineSpec, setup: Setup, deadline: float, template: Template) -> None:
        self.host.remember(size=[1, self.settings.memory_mib << 20])
        memory = template.open_memory()
        try:
            saved = (_state_of(template), memory)
            guest = guest_of(setup, self.settings)
            await self._machine.restore(setup, guest, saved, self._placement(spec), deadline)
        finally:
            os.close(memory)
        self.host.lap("vmm")

    async def forget_clone(self) -> None:
        """The VMM's directory stays: the share's socket is in it."""

    def _placement(self, spec: MachineSpec) -> Placement:
        return Placement(spec.console_path, spec.cgroup, self._user)

    # -- control -------------------------------------------------------------------------------------------------------

    async def reconnect(self, deadline: float) -> None:
        await self._machine.reconnect(deadline)

    async def open_channel(self, deadline: float) -> AgentClient:
        return await self._machine.open_channel(deadline)

    async def pause(self) -> None:
        await self._machine.api.put("vm.pause")

    async def resume(self) -> None:
        await self._machine.api.put("vm.resume")

    # -- the end -------------------------------------------------------------------------------------------------------

    async def wait(self) -> Ended:
        """Also of a machine that was reset, which its VMM starts anew: what comes up is no pod."""
        loop = self.host.loop
        end, lost = loop.spawn(super().wait(), "end"), loop.spawn(self._machine.events.until_lost(), "events")
        gate = loop.future()
        for task in (end, lost):
            task.add_done_callback(lambda _: gate.set_result(None))
        try:
            await gate
            if end.done:
                return end.result()
            await self.vmm.kill(time.monotonic() + _KILL_SECONDS)
            return Ended(255, f"the machine is lost: {lost.result()}: {self._last_words()}")
        finally:
            end.cancel()
            lost.cancel()

    async def stop(self, grace: float, agent: AgentClient | None) -> Stage:
        """Without its agent a machine is asked by its power button, to which other images than ours may listen."""
        if agent is None and grace > 0 and self.vmm.alive:
            with suppress(KuasarError):
                await self._machine.api.put("vm.power-button", deadline=time.monotonic() + _BUTTON_SECONDS)
                if await self.vmm.ended_by(time.monotonic() + grace):
                    self._cancel_tasks()
                    return Stage.ASKED
        return await super().stop(grace, agent)

    async def ask_to_quit(self) -> None:
        await self._machine.quit()

    async def disconnect(self) -> None:
        self._machine.disconnect()

    def _last_words(self, how: str = "") -> str:
        words = super()._last_words(how)
        events = self._machine.events.read()
        return f"{words}; the VMM's last event: {events[-1].source} {events[-1].name}" if events else words

    # -- devices -------------------------------------------------------------------------------------------------------

    def _make_share(self) -> Share:
        if self._share is None:
            self._share = Share(self.host, self.settings.virtiofsd, self._machine.jail.directory, self._user)
        return self._share

    async def attach_share(self, share: Share, deadline: float) -> None:
        await self._devices.plug_share("share", deadline)

    async def attach_nics(self, spec: MachineSpec, deadline: float) -> None:
        for index, nic in enumerate(spec.nics):
            await self._devices.plug_nic(f"nic{index}", nic, deadline)

    async def attach_disk(self, serial: str, path: str, read_only: bool, deadline: float | None) -> None:
        await self._devices.plug_disk(serial, path, read_only, deadline)

    async def detach_disk(self, serial: str) -> None:
        await self._devices.unplug(serial)

    async def grow(self, size: Size, deadline: float) -> None:
        await self._devices.resize(size, deadline)


def _state_of(template: Template) -> State:
    with open(template.open_state(), "rb") as file:
        return State.unpack(file.read())
