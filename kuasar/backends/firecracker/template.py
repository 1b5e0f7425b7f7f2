"""Templates of Firecracker machines: which there is one of, and what a pod must be like to start as its clone.

A snapshot has the processors, the memory, the drives and the cards of the machine that it was taken of, and nothing
can be added to a clone. So there is one template per engine: a machine as small as the engine's are, with one card.
Pods without limits beyond that start as its clones, others boot.
"""

from __future__ import annotations

from kuasar.backends.base import MachineSpec, Nic
from kuasar.backends.boot_setup import Setup, template_key
from kuasar.backends.firecracker import bodies
from kuasar.backends.sizes import Size
from kuasar.core.config import Engine

FORMAT = 1
CARDS = 1
MAC = "02:00:00:00:00:01"
"""Of the template's card; a clone's agent gives its card the pod's."""
TAP = "kuasartemplate"


def guest_of(setup: Setup, settings: Engine) -> bodies.Guest:
    """The machine that the template is made of."""
    nic = Nic("eth0", MAC, 1500, (), TAP)
    counts = bodies.split_drives(settings.device_ports, CARDS)
    return bodies.Guest(setup.command_line, 1, settings.memory_mib << 20, *counts, (nic,))


def key_of(setup: Setup, settings: Engine) -> str:
    """Names the template: another one for whatever could make the snapshot unusable."""
    return template_key(setup, guest_of(setup, settings), FORMAT)


def why_not(spec: MachineSpec, size: Size, settings: Engine) -> str:
    """Why the pod cannot be a clone; empty if it can."""
    if not settings.template:
        return "template = false"
    if len(spec.nics) != CARDS:
        return f"the pod has {len(spec.nics)} network cards, the template {CARDS}"
    if size != Size(1, settings.memory_mib << 20):
        return f"the pod needs {size.vcpus} processors and {size.memory_bytes >> 20} MiB, more than the template has"
    return ""
