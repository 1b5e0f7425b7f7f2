"""What a container of a microVM needs of the host's files and disks, and how it gets there.

==========================================  ====================================================================
source                                      way
==========================================  ====================================================================
root file system of directories (overlay)   mounted on the host below the pod's share
root file system on a disk or in a file     a virtio disk, mounted by the agent (erofs, ext4, xfs, squashfs)
the same, of layers mounted as erofs        through the share; without one a virtio disk for each layer, and what is
                                            written goes to memory of the guest
directory or regular file                   bound below the pod's share, read-only on the host, too, if it is so
tmpfs or hugetlbfs of an emptyDir           memory of the guest, one volume for all containers of the pod
block device                                a virtio disk, with the guest's number in the container
socket, FIFO, character device              refused: what is behind it is in the host's kernel
==========================================  ====================================================================

Pure but for :class:`Storage`, which does what :func:`plan` says.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from kuasar.backends.base import Lent
from kuasar.backends.share import Share, erofs_images, mounts_of_host, require_shareable
from kuasar.core import log
from kuasar.core.errors import InvalidArgument, KuasarError, Unimplemented, wrap

DISK_TYPES = frozenset({"erofs", "ext4", "xfs", "squashfs"})
_VIRTUAL_TYPES = frozenset({"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "devtmpfs", "hugetlbfs"})
EMPTY_DIR = re.compile(r"/volumes/kubernetes\.io~empty-dir/([^/]+)$")
_MEMORY_TYPES = ("tmpfs", "hugetlbfs")
# Character devices that every guest has, too, under the same name and number.
_SAME_DEVICES = frozenset(
    {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (1, 11), (5, 0), (5, 1), (5, 2), (10, 200), (10, 229)}
)
_GUEST_OCI_VERSION = "1.0.2"
"""The guest's runtime refuses versions that it does not know, though what is newer in them is optional."""
_NODE = "block:"
_JOINED = ("network", "ipc", "uts", "pid", "cgroup")


class Disks(Protocol):
    """What an engine does with disks."""

    async def attach_disk(self, serial: str, path: str, read_only: bool, deadline: float | None) -> None:
        """Attach the block device or image file at ``path``. Raises Unimplemented where the engine cannot."""

    async def detach_disk(self, serial: str) -> None:
        """Detach; harmless when it is gone."""


@dataclass
class Plan:
    """The container as the agent shall make it, and what has to be done for it."""

    spec: dict[str, Any]
    rootfs: list[Any]
    binds: list[tuple[str, str, bool, bool]] = field(default_factory=list)
    """(source, name below the share, read-only, follow later mounts)."""
    disks: list[tuple[str, str, bool]] = field(default_factory=list)
    """(serial, path or ``block:<major>:<minor>``, read-only)."""

    @property
    def has_root_of_directories(self) -> bool:
        """Whether the root file system is not on disks of its own."""
        return bool(self.rootfs) and self.rootfs[0].get("type") == "bind"


def plan(
    container_id: str,
    bundle: str,
    spec: dict[str, Any],
    rootfs: list[Any],
    share_in_guest: str,
    mounted: Mapping[str, str],
    layers: Mapping[str, str] | None = None,
) -> Plan:
    """What to do for a container. ``mounted``: mount point -> ``type options`` of the host's mounts; ``layers``: for a
    machine without a share, mount point -> image of the host's erofs mounts. Raises :class:`InvalidArgument` or
    :class:`Unimplemented` naming the field."""
    made = Plan(_for_the_guest(container_id, spec), [])
    rootfs = _layers_as_disks(rootfs, layers) if layers else rootfs
    _plan_rootfs(made, container_id, bundle, rootfs, share_in_guest)
    made.spec["mounts"] = [
        _plan_mount(made, container_id, index, mount, share_in_guest, mounted)
        for index, mount in enumerate(spec.get("mounts") or [])
    ]
    devices = made.spec["linux"].get("devices")
    if devices:
        made.spec["linux"]["devices"] = [
            _plan_device(made, container_id, index, device) for index, device in enumerate(devices)
        ]
    return made


def container_name(container_id: str) -> str:
    """Where a container's things are below the share."""
    return f"containers/{container_id}"


def _for_the_guest(container_id: str, spec: dict[str, Any]) -> dict[str, Any]:
    """The specification without what belongs to the host's kernel."""
    hooks = [name for name, value in (spec.get("hooks") or {}).items() if value]
    if hooks:
        raise Unimplemented(
            f"hooks.{hooks[0]}: programs of the host are not run for a container in a virtual machine",
            capability="hooks",
            field=f"hooks.{hooks[0]}",
        )
    process = {
        name: value for name, value in spec["process"].items() if name not in ("apparmorProfile", "selinuxLabel")
    }
    linux = {name: value for name, value in (spec.get("linux") or {}).items() if name != "mountLabel"}
    # The pod's namespaces are the guest's: what would join them by a path of the host simply stays where it is.
    linux["namespaces"] = [
        each
        for each in linux.get("namespaces") or []
        if not (isinstance(each, dict) and each.get("path") and each.get("type") in _JOINED)
    ]
    linux["cgroupsPath"] = f"/kuasar/{container_id}"
    adapted = {**spec, "ociVersion": _GUEST_OCI_VERSION, "process": process, "linux": linux}
    if not any(each.get("type") == "uts" for each in linux["namespaces"] if isinstance(each, dict)):
        adapted.pop("hostname", None)
        adapted.pop("domainname", None)
    return adapted


# -- root file system --------------------------------------------------------------------------------------------------


def _plan_rootfs(made: Plan, container_id: str, bundle: str, rootfs: list[Any], share_in_guest: str) -> None:
    name = f"{container_name(container_id)}/rootfs"
    if rootfs and any(_is_disk(each) for each in rootfs):
        made.rootfs = [_plan_disk_mount(made, container_id, index, each) for index, each in enumerate(rootfs)]
        return
    made.rootfs = [{"type": "bind", "source": f"{share_in_guest}/{name}", "target": "", "options": ["rbind"]}]
    if not rootfs:
        path = os.path.join(bundle, str((made.spec.get("root") or {}).get("path") or ""))
        if not os.path.isdir(path):
            raise InvalidArgument(f"root.path: {path} is no directory", field="root.path")
        made.binds.append((path, name, False, False))


def _layers_as_disks(rootfs: list[Any], layers: Mapping[str, str]) -> list[Any]:
    """An overlay of directories that are all erofs mounts, which is what containerd's erofs snapshotter gives before
    2.2: the same of disks, and what is written goes to the guest's memory, as the directory for it cannot be had there.
    Anything else stays as it is."""
    if len(rootfs) != 1 or not isinstance(rootfs[0], dict) or rootfs[0].get("type") != "overlay":
        return rootfs
    options = [str(option) for option in rootfs[0].get("options") or []]
    below = [option.removeprefix("lowerdir=").split(":") for option in options if option.startswith("lowerdir=")]
    if len(below) != 1 or not all(directory in layers for directory in below[0]):
        return rootfs
    disks = [{"type": "erofs", "source": layers[path], "target": "", "options": ["ro"]} for path in below[0]]
    lower = f"lowerdir={{{{ overlay 0 {len(disks) - 1} }}}}"
    if not any(option.startswith("upperdir=") for option in options):
        return [*disks, {"type": "overlay", "source": "overlay", "target": "", "options": [lower]}]
    above = f"{{{{ mount {len(disks)} }}}}"
    written = [f"upperdir={above}/upper", f"workdir={above}/work"]
    return [
        *disks,
        {"type": "tmpfs", "source": "tmpfs", "target": "", "options": ["mode=0755"]},
        {"type": "overlay", "source": "overlay", "target": "", "options": [lower, *written]},
    ]


def _is_disk(each: Any) -> bool:
    return isinstance(each, dict) and each.get("type") in DISK_TYPES


def _plan_disk_mount(made: Plan, container_id: str, index: int, each: Any) -> dict[str, Any]:
    field_name = f"rootfs[{index}]"
    if isinstance(each, dict) and each.get("type") in ("overlay", "tmpfs"):
        return each  # over the ones before it, which it names as containerd does: {{ mount 0 }}
    if not _is_disk(each):
        kind = each.get("type") if isinstance(each, dict) else each
        raise Unimplemented(
            f"{field_name}.type: {kind!r} beside disks is not possible", capability="rootfs", field=field_name
        )
    source = str(each.get("source") or "")
    options = [option for option in each.get("options") or [] if option != "loop"]
    read_only = "ro" in options or each["type"] in ("erofs", "squashfs")
    made.disks.append((disk_serial(container_id, field_name), _require_disk(source, f"{field_name}.source"), read_only))
    return {**each, "source": f"disk:{made.disks[-1][0]}", "options": options}


def _require_disk(path: str, field_name: str) -> str:
    try:
        mode = os.stat(path).st_mode
    except OSError as exc:
        raise InvalidArgument(f"{field_name}: {path}: {exc.strerror}", field=field_name) from exc
    if not stat.S_ISBLK(mode) and not stat.S_ISREG(mode):
        raise InvalidArgument(f"{field_name}: {path} is neither a block device nor a file", field=field_name)
    return path


def disk_serial(container_id: str, what: str) -> str:
    """A disk's serial number (at most 20 characters): the same for the same thing."""
    return "k" + hashlib.sha256(f"{container_id}/{what}".encode()).hexdigest()[:18]


# -- mounts ----------------------------------------------------------------------------------------------------------


def _plan_mount(
    made: Plan, container_id: str, index: int, mount: dict[str, Any], share_in_guest: str, mounted: Mapping[str, str]
) -> dict[str, Any]:
    options = [str(option) for option in mount.get("options") or []]
    kind = str(mount.get("type") or "")
    is_bind = kind in ("bind", "rbind", "none", "") and bool(
        {"bind", "rbind"} & set(options) or kind in ("bind", "rbind")
    )
    field_name = f"mounts[{index}]"
    if not is_bind:
        if kind not in _VIRTUAL_TYPES:
            raise Unimplemented(f"{field_name}.type: {kind!r} is not possible", capability="mount", field=field_name)
        return mount
    source = str(mount.get("source") or "")
    if not os.path.isabs(source):
        raise InvalidArgument(f"{field_name}.source: {source!r} is not an absolute path", field=f"{field_name}.source")
    volume = _memory_volume(source, mounted)
    if volume is not None:
        return {**mount, **volume, "options": [*_without_bind(options), *volume["options"]]}
    require_shareable(source, f"{field_name}.source")
    name = f"{container_name(container_id)}/m{index}"
    read_only = "ro" in options or "rro" in options
    made.binds.append((source, name, read_only, bool({"slave", "rslave"} & set(options))))
    return {**mount, "source": f"{share_in_guest}/{name}"}


def _without_bind(options: list[str]) -> list[str]:
    return [option for option in options if option not in ("bind", "rbind", "private", "rprivate", "slave", "rslave")]


def _memory_volume(source: str, mounted: Mapping[str, str]) -> dict[str, Any] | None:
    """An emptyDir in memory, as memory of the guest."""
    match = EMPTY_DIR.search(source)
    kind, _, options = mounted.get(os.path.realpath(source), "").partition(" ")
    if match is None or kind not in _MEMORY_TYPES:
        return None
    kept = [option for option in options.split(",") if option.startswith(("size=", "pagesize="))]
    return {"type": kind, "source": f"volume:{match[1]}", "options": kept}


# -- devices ---------------------------------------------------------------------------------------------------------


def _plan_device(made: Plan, container_id: str, index: int, device: dict[str, Any]) -> dict[str, Any]:
    field_name = f"linux.devices[{index}]"
    number = (device.get("major"), device.get("minor"))
    if device.get("type") == "b":
        if not all(type(part) is int and part >= 0 for part in number):
            raise InvalidArgument(f"{field_name}: major and minor are needed", field=field_name)
        serial = disk_serial(container_id, str(device.get("path")))
        made.disks.append((serial, f"{_NODE}{number[0]}:{number[1]}", _is_read_only(made.spec, number)))
        return {**device, "kuasarDisk": serial}
    if device.get("type") in ("c", "u") and number not in _SAME_DEVICES:
        raise Unimplemented(
            f"{field_name}: {device.get('path')} is a character device of the host, which a machine does not have",
            capability="devices",
            field=field_name,
        )
    return device


def _is_read_only(spec: dict[str, Any], number: tuple[Any, Any]) -> bool:
    rules = ((spec["linux"].get("resources") or {}).get("devices")) or []
    access = [str(rule.get("access")) for rule in rules if (rule.get("major"), rule.get("minor")) == number]
    return bool(access) and not any("w" in each for each in access)


# -- doing it --------------------------------------------------------------------------------------------------------


class Storage:
    """Does what plans say. ``share`` is None for a machine that shares no directory with its host."""

    layers_are_disks = True
    """Whether layers that the host has mounted are plugged in one by one where there is no share."""

    def __init__(self, directory: str, share: Share | None, disks: Disks) -> None:
        self._directory = directory
        self._share = share
        self._disks = disks

    async def lend(
        self,
        container_id: str,
        bundle: str,
        spec: dict[str, Any],
        rootfs: list[Any],
        guest: str,
        deadline: float | None,
    ) -> tuple[Lent, list[str]]:
        """Carry out the plan; gives the serials of the disks, too. Undoes itself on failure."""
        layers = erofs_images() if self._share is None and self.layers_are_disks else None
        planned = plan(container_id, bundle, spec, rootfs, guest, mounts_of_host(), layers)
        attached: list[str] = []
        try:
            await self._bring(container_id, bundle, planned, rootfs, deadline)
            for serial, path, read_only in planned.disks:
                attached.append(serial)
                await self._attach(serial, path, read_only, deadline)
        except BaseException:
            try:
                await self.take_back(container_id, attached)
            except KuasarError as exc:  # the first error counts; what stays is recorded
                log.error("what was lent cannot be taken back", container=container_id, error=exc)
            raise
        return Lent(planned.spec, planned.rootfs), attached

    async def _attach(self, serial: str, path: str, read_only: bool, deadline: float | None) -> None:
        if not path.startswith(_NODE):
            await self._disks.attach_disk(serial, path, read_only, deadline)
            return
        # The device is known by its number alone; its node elsewhere may have another name or not be there.
        major, minor = map(int, path.removeprefix(_NODE).split(":"))
        node = f"{self._directory}/{serial}"
        try:
            os.mknod(node, stat.S_IFBLK | 0o600, os.makedev(major, minor))
            await self._disks.attach_disk(serial, node, read_only, deadline)
        except OSError as exc:
            raise wrap(exc, f"block device {major}:{minor}") from exc
        finally:
            with suppress(FileNotFoundError):
                os.unlink(node)

    async def _bring(
        self, container_id: str, bundle: str, planned: Plan, rootfs: list[Any], deadline: float | None
    ) -> None:
        """What no disk carries: by the share."""
        by_share = planned.has_root_of_directories
        if not by_share and not planned.binds:
            return
        if self._share is None:
            what = planned.binds[0][0] if planned.binds else "the root file system"
            raise Unimplemented(
                f"container {container_id}: {what} cannot be shared: this pod's machine shares no directory with the "
                'host (use a block snapshotter and no volumes, or shared_fs = "virtiofs")',
                capability="shared-directory",
            )
        if by_share and rootfs:
            self._share.mount_rootfs(rootfs, f"{container_name(container_id)}/rootfs")
        for source, name, read_only, slave in planned.binds:
            self._share.bind(source, name, read_only=read_only, slave=slave)

    async def take_back(self, container_id: str, serials: list[str]) -> None:
        """Detach the disks, unmount what is below the share. Harmless to repeat."""
        for serial in serials:
            await self._disks.detach_disk(serial)
        if self._share is not None:
            with suppress(FileNotFoundError):
                self._share.remove(container_name(container_id))
