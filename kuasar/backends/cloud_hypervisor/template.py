"""Templates of Cloud Hypervisor machines: what one is made of, and what names it.

A template has one processor, the base's memory and no card: what a pod needs is plugged into its clones. Cloud
Hypervisor reads all of the memory before a clone goes on, so the base should be small.
"""

from __future__ import annotations

import hashlib
import os

from kuasar.backends.boot_setup import Setup
from kuasar.backends.cloud_hypervisor.bodies import Guest
from kuasar.core.config import Engine

FORMAT = 1


def guest_of(setup: Setup, settings: Engine) -> Guest:
    """The machine of every pod of an engine, at its start; paths are filled in by its VMM's descriptors."""
    return Guest(
        kernel="",
        initramfs="",
        root_disk="",
        command_line=setup.command_line,
        vsock="",
        memory_bytes=settings.memory_mib << 20,
        max_memory_bytes=settings.max_memory_mib << 20,
        max_vcpus=settings.max_vcpus,
        shared_memory=True,
    )


def key_of(setup: Setup, settings: Engine) -> str:
    """Names the template: another one for whatever could make its state unusable."""
    facts = {
        "format": FORMAT,
        "version": setup.version,
        "binary": _identity(setup.binary),
        "kernel": _identity(setup.kernel),
        "image": setup.image_digest,
        "guest": guest_of(setup, settings),
        "host": os.uname().release,
        "processor": _processor(),
    }
    text = "\n".join(f"{name}={value}" for name, value in facts.items())
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _identity(path: str) -> str:
    """Changes when the file does."""
    found = os.stat(path)
    return f"{path}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


def _processor() -> str:
    """What a state must find again: model and features."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        lines = file.read().partition("\n\n")[0].splitlines()
    wanted = ("vendor_id", "cpu family", "model", "stepping", "flags", "microcode")
    return "\n".join(line for line in lines if line.split("\t")[0].strip() in wanted)
