"""What a container of a machine without a share gets: disks, volumes in the guest's memory, and copies.

======================================  ===========================================================================
source                                  way
======================================  ===========================================================================
root file system of directories         packed into an erofs image, with memory of the guest above it
directory that is only read, file       copied into the guest's memory when the container is made; later changes are
                                        not seen on either side
emptyDir                                memory of the guest, one volume for all containers of the pod
directory that may be written           refused: nothing that is written there would arrive
the rest                                as in every machine (``backends/storage.py``)
======================================  ===========================================================================
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from kuasar.backends.base import Host, Lent
from kuasar.backends.storage import EMPTY_DIR, Disks, Plan, Storage, container_name, disk_serial
from kuasar.backends.unshared.copying import AskAgent, copy_tree
from kuasar.backends.unshared.packing import Packed, Packer
from kuasar.core.errors import KuasarError, Unavailable, Unimplemented

_ROOT = "rootfs"


class DiskStorage(Storage):
    """See above, for a machine of engine ``engine``. ``ask_agent`` makes and removes copies. ``layers_are_disks``:
    whether layers that the host has mounted are plugged in one by one, or packed as other directories are."""

    def __init__(
        self, host: Host, engine: str, disks: Disks, packer: Packer, ask_agent: AskAgent, *, layers_are_disks: bool
    ) -> None:
        super().__init__(host.directory, None, disks)
        self._engine = engine
        self.layers_are_disks = layers_are_disks
        self._packer = packer
        self._ask_agent = ask_agent
        self._passing: dict[str, Packed] = {}

    async def lend(
        self,
        container_id: str,
        bundle: str,
        spec: dict[str, Any],
        rootfs: list[Any],
        guest: str,
        deadline: float | None,
    ) -> tuple[Lent, list[str]]:
        try:
            return await super().lend(container_id, bundle, spec, rootfs, guest, deadline)
        finally:
            image = self._passing.pop(container_id, None)
            if image is not None and not image.is_kept:
                with suppress(FileNotFoundError):
                    os.unlink(image.path)

    async def _bring(
        self, container_id: str, bundle: str, planned: Plan, rootfs: list[Any], deadline: float | None
    ) -> None:
        if planned.has_root_of_directories:
            await self._pack(container_id, bundle, planned, rootfs, deadline)
        for source, name, read_only, _ in planned.binds:
            if name == f"{container_name(container_id)}/{_ROOT}":
                continue
            index = int(name.rpartition("/m")[2])
            if not read_only and _is_directory(source):
                planned.spec["mounts"][index] = _volume(self._engine, planned.spec["mounts"][index], source, index)
            else:
                await copy_tree(self._ask_agent, source, name, f"mounts[{index}].source", deadline)

    async def _pack(
        self, container_id: str, bundle: str, planned: Plan, rootfs: list[Any], deadline: float | None
    ) -> None:
        directory = os.path.join(bundle, str((planned.spec.get("root") or {}).get("path") or ""))
        image = await self._packer.pack(container_id, rootfs, directory, deadline)
        self._passing[container_id] = image
        serial = disk_serial(container_id, _ROOT)
        planned.disks.append((serial, image.path, True))
        overlay = ["lowerdir={{ mount 0 }}", "upperdir={{ mount 1 }}/upper", "workdir={{ mount 1 }}/work"]
        planned.rootfs = [
            {"type": "erofs", "source": f"disk:{serial}", "target": "", "options": ["ro"]},
            {"type": "tmpfs", "source": "tmpfs", "target": "", "options": ["mode=0755"]},
            {"type": "overlay", "source": "overlay", "target": "", "options": overlay},
        ]

    async def take_back(self, container_id: str, serials: list[str]) -> None:
        self._packer.unmount(container_id)
        await super().take_back(container_id, serials)
        with suppress(Unavailable):  # the machine is gone, and all copies with it
            await self._ask_agent("guest.remove", {"name": container_name(container_id)}, None)


def _is_directory(path: str) -> bool:
    return os.path.isdir(path)


def _volume(engine: str, mount: dict[str, Any], source: str, index: int) -> dict[str, Any]:
    """A directory that may be written, where that is possible: memory of the guest instead of an emptyDir."""
    match = EMPTY_DIR.search(source)
    if match is None:
        raise refused(
            engine,
            f"mounts[{index}].source",
            f"{source} is a directory that the container may write, at {mount.get('destination')}",
        )
    kept = [option for option in mount.get("options") or [] if option in ("rw", "nosuid", "nodev", "noexec")]
    return {**mount, "type": "tmpfs", "source": f"volume:{match[1]}", "options": kept}


def refused(engine: str, field: str, what: str) -> KuasarError:
    """The error for what would need a directory in common, with the ways out."""
    return Unimplemented(
        f"{field}: {what}, and no directory of this {engine} machine is shared with its host: mount it read-only (it "
        "is copied), use an emptyDir or a block volume, or another engine",
        engine=engine,
        capability="shared-directory",
        field=field,
    )
