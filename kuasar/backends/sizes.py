"""How large a machine has to be for its pod: limits plus overhead, with a floor. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from kuasar.core.config import Engine

BLOCK_BYTES = 128 * 1024 * 1024
"""Memory is plugged in in whole blocks: what a guest's kernel can bring online."""
GUEST_BYTES = 64 * 1024 * 1024
"""What the guest's own kernel and agent need beside the containers."""
VMM_BYTES = 64 * 1024 * 1024
"""What the VMM and its helpers need beside the guest's memory (measured: 46 MiB of QEMU's own in a clone)."""
_MIB = 1024 * 1024


@dataclass(frozen=True)
class Size:
    """Processors and memory of a machine."""

    vcpus: int
    memory_bytes: int


def size_for(vcpus: int, memory_bytes: int, at_least: Size, settings: Engine) -> Size:
    """The size for a pod that asks for so much (0: no limit), never less than ``at_least`` (what it has), never more
    than the engine's settings allow. Memory is rounded up to whole blocks above the base."""
    most = settings.max_memory_mib * _MIB
    extra = max(0, memory_bytes - at_least.memory_bytes)
    memory = at_least.memory_bytes + -(-extra // BLOCK_BYTES) * BLOCK_BYTES
    if memory > most:
        memory = max(at_least.memory_bytes, most - (most - at_least.memory_bytes) % BLOCK_BYTES)
    return Size(max(at_least.vcpus, min(vcpus, settings.max_vcpus)), memory)
