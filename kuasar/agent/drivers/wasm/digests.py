"""SHA-256 of files, remembered as long as the file is untouched: a large one is read once and not per container.

What is remembered holds for an identity: boot, device, inode, size, and both times in nanoseconds. Any write changes
the change time, which no program can set; a file changed within the last two seconds is not remembered, because a
second write within one tick of the kernel's clock would go unseen. Only file systems whose change time is the kernel's
own are trusted. An overlay has a device number of its own for each container, so there the device below it counts, and
only if all its layers are on that one.

The records are small files in a 0700 directory, one per identity, each with a checksum of its own.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from contextlib import suppress

from kuasar.agent.drivers.wasm import syscalls

SMALL_FILE = 1024 * 1024
"""Up to this size a file is read each time: faster than looking its digest up would be worth (0.6 ms)."""

_SETTLED_SECONDS = 2.0
_RECORD = re.compile(r"([0-9a-f]{64}) ([0-9a-f]{64})")
_OVERLAY = 0x794C7630
_TRUSTED_FILE_SYSTEMS = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0xF2F52010,  # f2fs
        0x01021994,  # tmpfs
        0xE0F5E1E2,  # erofs
        0x73717368,  # squashfs
    }
)


class FileDigests:
    """Digests of files, with records in ``directory`` (which only root can enter)."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def of(self, fd: int) -> str:
        """The SHA-256 of the regular file ``fd`` in hex; its offset is not used. Raises ``OSError`` if unreadable."""
        identity = _identity(fd)
        if identity is None:
            return _read_digest(fd)
        path = os.path.join(self._directory, _sha256(identity))
        known = _load(path, identity)
        if known is not None:
            return known
        digest = _read_digest(fd)
        if _is_settled(fd) and _identity(fd) == identity:
            with suppress(OSError):  # a full disk costs time, nothing else
                _store(path, identity, digest)
        return digest


def _read_digest(fd: int) -> str:
    state = hashlib.sha256()
    offset = 0
    while data := os.pread(fd, 1 << 20, offset):
        state.update(data)
        offset += len(data)
    return state.hexdigest()


def _is_settled(fd: int) -> bool:
    info = os.fstat(fd)
    return time.time() - max(info.st_ctime, info.st_mtime) > _SETTLED_SECONDS


def _identity(fd: int) -> str | None:
    """What makes this content this content; None where that cannot be told or is not worth it."""
    info = os.fstat(fd)
    if info.st_size <= SMALL_FILE:
        return None
    device = _device(fd, info)
    if device is None:
        return None
    return f"{_boot_id()} {device} {info.st_ino} {info.st_size} {info.st_mtime_ns} {info.st_ctime_ns}"


def _device(fd: int, info: os.stat_result) -> int | None:
    kind = syscalls.file_system_type(fd)
    if kind == _OVERLAY:
        return _device_below(fd)
    return info.st_dev if kind in _TRUSTED_FILE_SYSTEMS else None


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _device_below(fd: int) -> int | None:
    """The device on which all layers of the overlay of ``fd`` are, if it is one and of a trusted kind."""
    layers = _layers(fd)
    try:
        devices = {os.stat(layer).st_dev for layer in layers}
        kinds = {syscalls.file_system_type(layer) for layer in layers}
    except OSError:
        return None
    return devices.pop() if len(devices) == 1 and kinds <= _TRUSTED_FILE_SYSTEMS else None


def _layers(fd: int) -> list[str]:
    """The directories of the overlay of ``fd``; empty if they cannot be named from here."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        mount_id = next((line.split()[1] for line in file if line.startswith("mnt_id:")), "")
    with open("/proc/self/mountinfo") as file:
        options = next((line.split()[-1] for line in file if line.split(" ", 1)[0] == mount_id), "")
    layers: list[str] = []
    for option in options.split(","):
        key, _, value = option.partition("=")
        if key in ("lowerdir", "lowerdir+", "upperdir"):
            layers += value.split(":")
    plain = all(os.path.isabs(layer) and "\\" not in layer for layer in layers)
    return layers if plain else []


def _load(path: str, identity: str) -> str | None:
    try:
        with open(path, "rb") as file:
            match = _RECORD.fullmatch(file.read(256).decode("ascii", "replace"))
    except OSError:
        return None
    if match is None or match[2] != _sha256(f"{identity} {match[1]}"):
        return None
    return match[1]


def _store(path: str, identity: str, digest: str) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    fd = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, f"{digest} {_sha256(f'{identity} {digest}')}".encode())
    finally:
        os.close(fd)
    os.rename(temporary, path)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
