"""Command line and requests of Firecracker: pure functions, proved by golden tests and the vendor's schema.

Only what version 1.12 knows is said: Firecracker refuses fields that it does not know. Every path is relative to the
directory that the VMM runs in (``jail.py``) or the number of an inherited descriptor, so that a snapshot of one machine
fits another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kuasar.backends.base import BINARY_HINT, Nic
from kuasar.core.errors import BackendFailed

API_SOCKET, VSOCK_SOCKET = "api.sock", "vsock.sock"
EMPTY = "empty"
"""The file of a drive that has nothing in it."""
GUEST_CID = 3
"""The guest's own number; the socket tells machines apart, so all can have the same."""
ROOT_DRIVE = "root"
MOST_VCPUS = 32
MOST_DEVICES = 17
"""Interrupts for virtio devices that the newest versions leave on x86."""
_FIXED_DEVICES = 3
"""Root drive, vsock, entropy."""
_OLDEST = (1, 12)
_VERSION = re.compile(r"^Firecracker v(\d+)\.(\d+)\.\S+", re.MULTILINE)
_ID_BYTES = 20


@dataclass(frozen=True)
class Inherited:
    """Numbers, in Firecracker, of the files that it opens by them (``/proc/self/fd/N``)."""

    kernel: int = 3
    initrd: int = 4
    root: int = 5
    log: int = 6
    state: int = 7
    memory: int = 8
    """The last two in a clone, and in a template that is being made."""


INHERITED = Inherited()


@dataclass(frozen=True)
class Request:
    """One request, as the API gets it."""

    method: str
    endpoint: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Guest:
    """A machine as it is at boot; nothing but what its drives hold can be changed later."""

    command_line: str
    vcpus: int
    memory_bytes: int
    read_only_drives: int
    """Drives without content, for what containers only read."""
    writable_drives: int
    nics: tuple[Nic, ...] = ()


def argv(binary: str) -> list[str]:
    """The VMM without a machine. It makes its socket in its working directory; its seccomp filters are on by itself."""
    log = ["--log-path", _inherited(INHERITED.log), "--level", "Warning", "--show-level"]
    return [binary, "--api-sock", API_SOCKET, "--id", "kuasar", *log]


def require_version(binary: str, said: str) -> str:
    """The version in what ``--version`` said. Raises :class:`BackendFailed` if it is older than 1.12 or none."""
    match = _VERSION.search(said)
    if match is None:
        raise BackendFailed(f"{binary}: {said.strip()!r:.100} is no version of Firecracker; {BINARY_HINT}")
    if (int(match[1]), int(match[2])) < _OLDEST:
        raise BackendFailed(f"{binary}: {match[0]} is too old, 1.12 or newer is needed; {BINARY_HINT}")
    return match[0].removeprefix("Firecracker v")


def split_drives(wanted: int, cards: int) -> tuple[int, int]:
    """How many of ``wanted`` drives are read-only and writable in a machine of so many network cards; fewer where it
    has no room for more."""
    count = max(2, min(wanted, MOST_DEVICES - _FIXED_DEVICES - cards))
    return count - count // 2, count // 2


def boot(guest: Guest) -> Iterator[Request]:
    """All that makes a machine, in order; the last one starts it."""
    yield _put("machine-config", {"vcpu_count": guest.vcpus, "mem_size_mib": guest.memory_bytes >> 20, "smt": False})
    source = {"kernel_image_path": _inherited(INHERITED.kernel), "initrd_path": _inherited(INHERITED.initrd)}
    yield _put("boot-source", {**source, "boot_args": guest.command_line})
    yield _drive(ROOT_DRIVE, _inherited(INHERITED.root), is_root=True, read_only=True)
    for name in read_only_names(guest.read_only_drives):
        yield _drive(name, EMPTY, is_root=False, read_only=True)
    for name in writable_names(guest.writable_drives):
        yield _drive(name, EMPTY, is_root=False, read_only=False)
    for index, nic in enumerate(guest.nics):
        yield _nic(f"nic{index}", nic)
    yield _put("vsock", {"guest_cid": GUEST_CID, "uds_path": VSOCK_SOCKET})
    yield _put("entropy", {})
    yield _put("actions", {"action_type": "InstanceStart"})


def read_only_names(count: int) -> list[str]:
    """Of the drives for what is only read."""
    return [f"ro{index}" for index in range(count)]


def writable_names(count: int) -> list[str]:
    """Of the drives for what is written."""
    return [f"rw{index}" for index in range(count)]


def _drive(name: str, path: str, *, is_root: bool, read_only: bool) -> Request:
    # Writeback: else the guest's flushes would be ignored, and what a container has synced be lost with the host.
    flags = {"is_root_device": is_root, "is_read_only": read_only, "cache_type": "Writeback"}
    return _put(f"drives/{name}", {"drive_id": name, "path_on_host": path, **flags})


def _nic(name: str, nic: Nic) -> Request:
    return _put(f"network-interfaces/{name}", {"iface_id": name, "host_dev_name": nic.tap, "guest_mac": nic.mac})


def swap(name: str, path: str) -> Request:
    """Put ``path`` into a drive of a running machine, in the place of what it holds."""
    return Request("PATCH", f"drives/{name}", {"drive_id": name, "path_on_host": path})


def pause() -> Request:
    """Stop the processors."""
    return Request("PATCH", "vm", {"state": "Paused"})


def resume() -> Request:
    """Let them go on."""
    return Request("PATCH", "vm", {"state": "Resumed"})


def snapshot() -> Request:
    """Write a paused machine to the two files that it has inherited for it."""
    files = {"snapshot_path": _inherited(INHERITED.state), "mem_file_path": _inherited(INHERITED.memory)}
    return _put("snapshot/create", {"snapshot_type": "Full", **files})


def restore(taps: Sequence[str]) -> Request:
    """Go on from a snapshot whose files are inherited, with its cards on these taps."""
    body: dict[str, Any] = {
        "snapshot_path": _inherited(INHERITED.state),
        "mem_backend": {"backend_type": "File", "backend_path": _inherited(INHERITED.memory)},
        "resume_vm": True,
    }
    if taps:
        body["network_overrides"] = [
            {"iface_id": f"nic{index}", "host_dev_name": tap} for index, tap in enumerate(taps)
        ]
    return _put("snapshot/load", body)


def serial_of(device: int, special: int, inode: int) -> str:
    """The serial number that a guest sees of a drive whose file has these numbers (``st_dev``, ``st_rdev``,
    ``st_ino``): Firecracker makes it up so."""
    return f"{device}{special}{inode}"[:_ID_BYTES]


def _put(endpoint: str, body: dict[str, Any]) -> Request:
    return Request("PUT", endpoint, body)


def _inherited(number: int) -> str:
    return f"/proc/self/fd/{number}"
