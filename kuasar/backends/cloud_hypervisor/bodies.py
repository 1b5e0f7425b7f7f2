"""Command line and request bodies of Cloud Hypervisor: pure functions, proved by golden tests and the vendor's schema.

Devices are called by our names (``id``), so that a successor can ask ``vm.info`` what is there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from kuasar.backends.base import BINARY_HINT, Nic
from kuasar.backends.share import TAG
from kuasar.core.errors import BackendFailed

GUEST_CID = 3
"""The guest's own number; the socket tells machines apart, so all can have the same."""
ROOT_DISK, VSOCK = "root", "vsock"
_OLDEST = 50
_SHARE_QUEUE_SIZE = 1024
_VERSION = re.compile(r"^cloud-hypervisor v?(\d+)(?:\.\d+)*", re.MULTILINE)


@dataclass(frozen=True)
class Descriptors:
    """Numbers, in the VMM, of what it inherits; files it opens anew by them (``/proc/self/fd/N``), so that it needs no
    way to them."""

    api: int
    """Listening socket of the API."""
    kernel: int
    initrd: int
    root: int
    """The root disk."""
    events: int
    """Where events are appended to."""
    template: int
    """A template's memory, or the directory that one is written into; else the root disk once more."""

    @classmethod
    def in_order(cls, first: int = 3) -> Descriptors:
        """As they are when passed in the order of the fields."""
        return cls(*range(first, first + len(cls.__dataclass_fields__)))


def path_of(number: int) -> str:
    """A descriptor that the VMM has, as a path."""
    return f"/proc/self/fd/{number}"


@dataclass(frozen=True)
class Guest:
    """A machine as it is at boot. Paths are the VMM's to open; relative ones are in its own directory."""

    kernel: str
    initramfs: str
    root_disk: str
    command_line: str
    vsock: str
    """Path of the unix socket that the VMM makes for hybrid vsock."""
    memory_bytes: int
    max_memory_bytes: int
    max_vcpus: int
    shared_memory: bool
    """Whether virtiofsd shall see the guest's memory."""


def argv(binary: str, api: int, events: int) -> list[str]:
    """The VMM without a machine; ``api`` and ``events`` are numbers of inherited descriptors."""
    return [binary, "--api-socket", f"fd={api}", "--event-monitor", f"fd={events}", "--seccomp", "true"]


def require_version(binary: str, said: str) -> str:
    """The version in what ``--version`` said. Raises :class:`BackendFailed` if it is older than 50 or none."""
    match = _VERSION.search(said)
    if match is None:
        raise BackendFailed(f"{binary}: {said.strip()!r:.100} is no version of Cloud Hypervisor; {BINARY_HINT}")
    if int(match[1]) < _OLDEST:
        raise BackendFailed(f"{binary}: {match[0]} is too old, {_OLDEST} or newer is needed; {BINARY_HINT}")
    return match[0].split(" ")[1].removeprefix("v")


def create(guest: Guest) -> dict[str, Any]:
    """``vm.create``: one processor and the base's memory, with room to grow."""
    memory: dict[str, Any] = {"size": guest.memory_bytes, "shared": guest.shared_memory}
    if guest.max_memory_bytes > guest.memory_bytes:
        memory |= {"hotplug_method": "VirtioMem", "hotplug_size": guest.max_memory_bytes - guest.memory_bytes}
    return {
        "payload": {"kernel": guest.kernel, "initramfs": guest.initramfs, "cmdline": guest.command_line},
        # A machine in a pod's machine is nobody's wish, and its state cannot be saved everywhere.
        "cpus": {"boot_vcpus": 1, "max_vcpus": guest.max_vcpus, "nested": False},
        "memory": memory,
        "disks": [disk(ROOT_DISK, guest.root_disk, read_only=True)],
        "rng": {"src": "/dev/urandom"},
        # Standard output: a file would be cut when the VMM starts the machine anew, and with it the guest's last words.
        "serial": {"mode": "Tty"},
        "console": {"mode": "Off"},
        "vsock": {"id": VSOCK, "cid": GUEST_CID, "socket": guest.vsock},
    }


def disk(name: str, path: str, *, read_only: bool) -> dict[str, Any]:
    """``vm.add-disk``: a raw disk whose serial number is its name. Its kind is said, never guessed from what a
    container wrote there."""
    return {"id": name, "serial": name, "path": path, "readonly": read_only, "image_type": "Raw"}


def net(name: str, nic: Nic) -> dict[str, Any]:
    """``vm.add-net``: the taps come beside the request, a pair of queues for each. The MTU is the agent's to set: the
    VMM would set that of the tap, too, which is in another network namespace."""
    return {"id": name, "mac": nic.mac, "num_queues": 2 * len(nic.taps)}


def share(name: str, socket: str) -> dict[str, Any]:
    """``vm.add-fs``: the VMM connects to virtiofsd's socket itself."""
    return {"id": name, "tag": TAG, "socket": socket, "num_queues": 1, "queue_size": _SHARE_QUEUE_SIZE}


def resize(vcpus: int, memory_bytes: int) -> dict[str, Any]:
    """``vm.resize``: what the machine shall have altogether."""
    return {"desired_vcpus": vcpus, "desired_ram": memory_bytes}


def remove(name: str) -> dict[str, Any]:
    """``vm.remove-device``."""
    return {"id": name}


def snapshot(directory: str) -> dict[str, Any]:
    """``vm.snapshot``: of a paused machine, into an empty directory."""
    return {"destination_url": f"file://{directory}"}


def restore(directory: str) -> dict[str, Any]:
    """``vm.restore``: in the place of ``vm.create`` and ``vm.boot``; the machine is paused then."""
    return {"source_url": f"file://{directory}"}
