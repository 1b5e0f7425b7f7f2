"""Templates of Cloud Hypervisor machines: what one is made of, and what names it.

A template has one processor, the base's memory and no card: what a pod needs is plugged into its clones. Cloud
Hypervisor reads all of the memory before a clone goes on, so the base should be small.
"""

from __future__ import annotations

from kuasar.backends.boot_setup import Setup, template_key
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
    return template_key(setup, guest_of(setup, settings), FORMAT)
