"""Which Cloud Hypervisor this host has, and what its machines boot."""

from __future__ import annotations

import os
from dataclasses import dataclass

from kuasar.backends.base import BINARY_HINT
from kuasar.backends.cloud_hypervisor.bodies import require_version
from kuasar.backends.guest_image import INITRD, KERNEL, ROOT_DISK, ImageUnusable, load
from kuasar.backends.probing import Probe, Runner, require_program
from kuasar.core.config import Engine
from kuasar.core.errors import BackendFailed

DEFAULT_BINARY = "cloud-hypervisor"
_COMMAND_LINE = "console=ttyS0 quiet panic=-1 cryptomgr.notests random.trust_cpu=on memhp_default_state=online"


@dataclass(frozen=True)
class Setup:
    """All that is the same for every machine of an engine on this host, now."""

    binary: str
    version: str
    kernel: str
    initrd: str
    root: str
    image_digest: str
    command_line: str


async def find_program(host: Runner, name: str, deadline: float) -> Probe:
    """The program ``name`` (empty: by its usual name) and its version. Raises :class:`BackendFailed` naming what is
    missing, broken or too old, and the key that sets it; DeadlineExceeded if it hangs."""
    binary = require_program(name or DEFAULT_BINARY, BINARY_HINT)
    done = await host.run([binary, "--version"], deadline)
    words = done.output.decode(errors="replace").strip()
    if done.exit.shell_code:
        raise BackendFailed(f"{binary} --version {done.exit.words}: {words:.300}; {BINARY_HINT}")
    return Probe(binary, require_version(binary, words))


async def find_setup(host: Runner, settings: Engine, deadline: float) -> Setup:
    """Look at Cloud Hypervisor and the guest image. Raises :class:`BackendFailed` naming what is missing or broken."""
    program = await find_program(host, settings.binary, deadline)
    try:
        image = load(settings.image)
    except ImageUnusable as exc:
        raise BackendFailed(f"the guest image cannot be used: {exc}") from exc
    return Setup(
        binary=program.binary,
        version=program.version,
        kernel=_require_kernel(settings.kernel or f"{settings.image}/{KERNEL}"),
        initrd=f"{settings.image}/{INITRD}",
        root=f"{settings.image}/{ROOT_DISK}",
        image_digest=image.digest,
        command_line=" ".join(part for part in (_COMMAND_LINE, image.command_line, settings.kernel_arguments) if part),
    )


def _require_kernel(path: str) -> str:
    if not os.path.isfile(path):
        raise BackendFailed(f"the guest kernel {path} does not exist")
    return path
