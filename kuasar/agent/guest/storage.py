"""Containers' file systems and devices that are the machine's: sources ``disk:SERIAL`` and ``volume:NAME``.

Changes a creation request before the agent sees to it. Disks of a root file system become devices that are mounted as
everything else there; in the specification's mounts, what is meant is mounted once for the pod and bound from there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from kuasar.agent import mounts
from kuasar.agent.guest import disks, huge_pages, volumes
from kuasar.agent.guest.disks import Disks
from kuasar.agent.guest.uevents import Uevents
from kuasar.agent.guest.volumes import Volumes
from kuasar.core.errors import InvalidArgument

DEVICE_KEY = "kuasarDisk"


class GuestStorage:
    """``agent.storage.Storage`` of a virtual machine. ``directory`` is the sandbox directory in the guest."""

    def __init__(self, uevents: Uevents, load_module: Callable[[str], None], directory: str) -> None:
        self.disks = Disks(uevents, load_module, f"{directory}/disks")
        self._volumes = Volumes(f"{directory}/volumes")

    async def prepare(
        self, container: str, rootfs: list[Any], spec: dict[str, Any], deadline: float | None
    ) -> tuple[list[Any], dict[str, Any]]:
        """See ``agent.storage.Storage``."""
        layers = [await self._layer(each, f"rootfs[{index}]", deadline) for index, each in enumerate(rootfs)]
        linux = spec.get("linux") or {}
        if not isinstance(linux, dict):
            raise InvalidArgument("spec.linux: a map is needed", field="spec.linux")
        changed = {**spec, "linux": {**linux, "cgroupsPath": f"/kuasar/{container}"}}
        await self._devices(changed["linux"], deadline)
        _allow_huge_pages(linux.get("resources"))
        if spec.get("mounts"):
            changed["mounts"] = [
                await self._mount(container, each, f"spec.mounts[{index}]", deadline)
                for index, each in enumerate(_list(spec, "mounts", "spec.mounts"))
            ]
        return layers, changed

    def release(self, container: str) -> None:
        """See ``agent.storage.Storage``."""
        self.disks.release(container)

    async def _layer(self, each: Any, field: str, deadline: float | None) -> Any:
        serial = _after(each, disks.PREFIX)
        if serial is None:
            return each
        kind = str(each.get("type"))
        self.disks.require_file_system(kind, f"{field}.type")
        device = await self.disks.find(serial, deadline, f"{field}.source")
        # The host's loop device for the same file is not needed any more: the disk is in its place.
        options = [option for option in _options(each, field) if option != "loop"]
        if disks.is_read_only(device):
            options.append("ro")
        return {**each, "source": device, "options": options}

    async def _mount(self, container: str, each: Any, field: str, deadline: float | None) -> Any:
        serial, volume = _after(each, disks.PREFIX), _after(each, volumes.PREFIX)
        if serial is None and volume is None:
            return each
        options = _options(each, field)
        data = [option for option in options if not mounts.is_flag(option)]
        flags = [option for option in options if mounts.is_flag(option) and option not in ("bind", "rbind", "defaults")]
        kind = str(each.get("type"))
        if volume is not None:
            source = self._volumes.provide(volume, kind, data, field)
        else:
            source = await self.disks.share(serial or "", kind, data, container, deadline, field)
        return {**each, "type": "bind", "source": source, "options": ["bind", *flags]}

    async def _devices(self, linux: dict[str, Any], deadline: float | None) -> None:
        """Devices that are disks get this machine's numbers; so do the rules that allow them."""
        made, renumbered = [], {}
        for index, each in enumerate(_list(linux, "devices", "spec.linux.devices")):
            field = f"spec.linux.devices[{index}]"
            serial = each.get(DEVICE_KEY) if isinstance(each, dict) else None
            if serial is None:
                made.append(each)
                continue
            device = await self.disks.find(str(serial), deadline, f"{field}.{DEVICE_KEY}")
            number = os.stat(device).st_rdev
            renumbered[each.get("major"), each.get("minor")] = (os.major(number), os.minor(number))
            rest = {name: value for name, value in each.items() if name != DEVICE_KEY}
            made.append({**rest, "type": "b", "major": os.major(number), "minor": os.minor(number)})
        if renumbered:
            linux["devices"] = made
            resources = linux.get("resources") or {}
            rules = _list(resources, "devices", "spec.linux.resources.devices")
            linux["resources"] = {**resources, "devices": _renumber(rules, renumbered)}


def _renumber(rules: list[Any], numbers: dict[tuple[Any, Any], tuple[int, int]]) -> list[Any]:
    """The rules with the new numbers; a device that no rule is about may be used."""
    left = dict(numbers)
    changed = []
    for rule in rules:
        key = (rule.get("major"), rule.get("minor")) if isinstance(rule, dict) and rule.get("type") == "b" else None
        if key in numbers:
            left.pop(key, None)
            rule = {**rule, "major": numbers[key][0], "minor": numbers[key][1]}
        changed.append(rule)
    for major, minor in left.values():
        changed.append({"allow": True, "type": "b", "major": major, "minor": minor, "access": "rwm"})
    return changed


def _allow_huge_pages(resources: Any) -> None:
    """Those that the container's limits are about."""
    for index, limit in enumerate(_list(resources, "hugepageLimits", "spec.linux.resources.hugepageLimits")):
        field = f"spec.linux.resources.hugepageLimits[{index}]"
        size = limit.get("pageSize") if isinstance(limit, dict) else None
        if not isinstance(size, str):
            raise InvalidArgument(f"{field}.pageSize: a text is needed", field=f"{field}.pageSize")
        if limit.get("limit"):
            huge_pages.allow(huge_pages.bytes_of(size, f"{field}.pageSize"), f"{field}.pageSize")


def _after(each: Any, prefix: str) -> str | None:
    """What follows ``prefix`` in the source of a mount; None where it does not begin with that."""
    source = each.get("source") if isinstance(each, dict) else None
    return source.removeprefix(prefix) if isinstance(source, str) and source.startswith(prefix) else None


def _options(each: dict[str, Any], field: str) -> list[str]:
    options = _list(each, "options", f"{field}.options")
    if not all(isinstance(option, str) for option in options):
        raise InvalidArgument(f"{field}.options: a list of strings is needed", field=f"{field}.options")
    return options


def _list(holder: Any, name: str, field: str) -> list[Any]:
    value = (holder.get(name) if isinstance(holder, dict) else None) or []
    if not isinstance(value, list):
        raise InvalidArgument(f"{field}: a list is needed", field=field)
    return value
