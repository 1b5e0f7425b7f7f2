"""The shape of a QEMU machine: everything about it that a template and its clones must have in common. Pure data."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass

CONSOLE = "ttyS0"
_BASE_COMMAND_LINE = (
    f"console={CONSOLE} quiet panic=-1 cryptomgr.notests random.trust_cpu=on memhp_default_state=online"
)
_CRASHES_WITH_CX16 = (6, 2)
"""Guest kernels from here on use cmpxchg16b in a way that QEMU 7's TCG gets wrong: most boots crash."""
_FIRST_RIGHT_TCG = (8, 0)


@dataclass(frozen=True)
class Shape:
    """A machine as it is at boot. ``memory_bytes`` and one processor; what a pod needs beyond is plugged in."""

    qemu_version: str
    accel: str
    """``kvm`` or ``tcg``."""
    cpu: str
    memory_bytes: int
    max_memory_bytes: int
    """The base and all that can be plugged in."""
    max_vcpus: int
    ports: int
    """PCI Express ports for devices that are plugged in."""
    command_line: str
    image_digest: str
    host_kernel: str
    channel: str
    """Kind of the channel to the agent (``channel.py``), which is a device of the machine."""

    @property
    def key(self) -> str:
        """Names a template: any difference that could make its state unusable gives another key."""
        text = "\n".join(f"{name}={value}" for name, value in sorted(asdict(self).items()))
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def command_line(image: str, extra: str) -> str:
    """The kernel's command line: ours, what the image wants, what the operator adds."""
    return " ".join(part for part in (_BASE_COMMAND_LINE, image, extra) if part)


def cpu_model(accel: str, qemu_version: str, kernel_release: str) -> str:
    """The processor model: the host's own with KVM, all that TCG can do otherwise, but for what crashes."""
    if accel == "kvm":
        return "host"
    if version_of(qemu_version) < _FIRST_RIGHT_TCG and version_of(kernel_release) >= _CRASHES_WITH_CX16:
        return "max,-cx16"
    return "max"


def version_of(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``7.2.22 (Debian …)`` is (7, 2, 22)."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(number) for number in match[0].split(".")) if match else ()
