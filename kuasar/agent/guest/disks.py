"""Disks of the machine by their serial numbers, and their file systems, each mounted once for all containers.

A virtio disk that has no serial number (StratoVirt's microvm gives its replaceable disks none) goes by the kernel's
name for it instead.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

from kuasar.agent import kernel
from kuasar.agent.guest.uevents import Uevents
from kuasar.core.errors import InvalidArgument, WrongState, wrap

PREFIX = "disk:"
FILE_SYSTEMS = ("ext4", "xfs", "erofs", "squashfs")
_SERIAL = re.compile(r"[A-Za-z0-9._-]{1,20}")
_BLOCK = "/sys/block"
_SECTOR = 512


class Disks:
    """Finds virtio-blk disks. ``load_module`` makes the kernel know a file system; ``directory``: where file systems
    that containers share are mounted."""

    def __init__(self, uevents: Uevents, load_module: Callable[[str], None], directory: str) -> None:
        self._uevents = uevents
        self._load_module = load_module
        self._directory = directory
        self._mounted: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._users: dict[str, set[str]] = {}
        self._names: dict[str, str] = {}

    async def find(self, serial: str, deadline: float | None, field: str) -> str:
        """The device of the disk with this serial number, or called so by :meth:`expect` (``/dev/vdb``); waits for it
        until ``deadline``."""
        _require_serial(serial, field)
        serial = self._names.get(serial, serial)
        return await self._uevents.until(lambda: _find(serial), deadline, lambda: _missing(field, serial))

    async def expect(self, name: str, serial: str, size: int, deadline: float | None) -> str:
        """The device of the disk with this serial number once the kernel knows its ``size`` in bytes, as it does a
        while after the content of a drive has been exchanged. From now on it is found as ``name``, too."""
        _require_serial(name, "name")
        _require_serial(serial, "serial")

        def look() -> str | None:
            device = _find(serial)
            return device if device is not None and _size_of(device) == size else None

        def missing() -> str:
            device = _find(serial)
            if device is None:
                return _missing("serial", serial)
            return f"bytes: disk {serial} has {_size_of(device)} bytes, not {size}"

        device = await self._uevents.until(look, deadline, missing)
        self._names[name] = serial
        return device

    def require_file_system(self, kind: str, field: str) -> None:
        """Have the kernel know ``kind``, or raise :class:`InvalidArgument`."""
        if kind not in FILE_SYSTEMS:
            raise InvalidArgument(
                f"{field}: a disk has one of {', '.join(FILE_SYSTEMS)}, not {kind!r:.80}", field=field
            )
        try:
            self._load_module(kind)
        except FileNotFoundError:
            pass  # built into the kernel, or the mount will tell
        except OSError as exc:
            raise wrap(exc, f"{field}: cannot load the module of {kind}") from exc

    async def share(
        self, serial: str, kind: str, data: Sequence[str], user: str, deadline: float | None, field: str
    ) -> str:
        """Where the file system of a disk is mounted: once, however many containers (``user``) ask for it, read-only
        only if the disk is. Ends with :meth:`release` of the last one."""
        self.require_file_system(kind, f"{field}.type")
        device = await self.find(serial, deadline, f"{field}.source")
        wanted = (kind, tuple(data))
        path = f"{self._directory}/{serial}"
        if self._mounted.setdefault(serial, wanted) != wanted:
            is_kind, is_data = self._mounted[serial]
            raise WrongState(
                f"{field}: disk {serial} is mounted as {is_kind} with options {','.join(is_data) or '(none)'}",
                seen=is_kind,
                needed=kind,
            )
        try:
            _mount_once(device, path, kind, data)
        except OSError as exc:
            del self._mounted[serial]
            raise wrap(exc, f"{field}: cannot mount disk {serial} as {kind}") from exc
        self._users.setdefault(serial, set()).add(user)
        return path

    def release(self, user: str) -> None:
        """``user`` uses none of the shared file systems any more; harmless when it never did."""
        for serial, users in list(self._users.items()):
            users.discard(user)
            if users:
                continue
            path = f"{self._directory}/{serial}"
            try:
                if os.path.ismount(path):
                    kernel.umount(path)
                os.rmdir(path)
            except OSError as exc:
                raise wrap(exc, f"cannot unmount disk {serial}") from exc
            del self._users[serial], self._mounted[serial]


def _require_serial(serial: str, field: str) -> None:
    if not _SERIAL.fullmatch(serial):
        raise InvalidArgument(
            f"{field}: {serial!r:.80} is no serial number of a disk (1-20 of A-Z a-z 0-9 . _ -)", field=field
        )


def _missing(field: str, serial: str) -> str:
    there = ", ".join(sorted(filter(None, map(_serial_of, os.listdir(_BLOCK))))) or "none"
    return f"{field}: the machine has no disk with the serial number {serial} (it has: {there})"


def _mount_once(device: str, path: str, kind: str, data: Sequence[str]) -> None:
    if not os.path.ismount(path):
        os.makedirs(path, 0o700, exist_ok=True)
        kernel.mount(device, path, kind, kernel.MS_RDONLY if is_read_only(device) else 0, ",".join(data))


def is_read_only(device: str) -> bool:
    """Whether the machine has the disk as one that cannot be written."""
    return _read(f"{_BLOCK}/{os.path.basename(device)}/ro") == "1"


def _find(serial: str) -> str | None:
    for name in os.listdir(_BLOCK):
        if _serial_of(name) == serial and os.path.exists(f"/dev/{name}"):
            return f"/dev/{name}"
    return None


def _size_of(device: str) -> int:
    return int(_read(f"{_BLOCK}/{os.path.basename(device)}/size") or 0) * _SECTOR


def _serial_of(name: str) -> str:
    path = f"{_BLOCK}/{name}/serial"
    return _read(path) or (name if os.path.exists(path) else "")


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip("\0 \n")
    except OSError:
        return ""  # not a disk of this kind, or gone again
