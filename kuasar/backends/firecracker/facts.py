"""Which Firecracker this host has, and what its machines boot."""

from __future__ import annotations

from kuasar.backends.boot_setup import Setup, ask_program, setup_of
from kuasar.backends.firecracker.bodies import require_version
from kuasar.backends.probing import Probe, Runner
from kuasar.core.config import Engine

DEFAULT_BINARY = "firecracker"
_COMMAND_LINE = "console=ttyS0 quiet reboot=k panic=-1 kuasar.end=reboot cryptomgr.notests random.trust_cpu=on"
"""A guest ends its VMM by a reset through the keyboard's controller: Firecracker knows no power-off."""


async def find_program(host: Runner, name: str, deadline: float) -> Probe:
    """The program ``name`` (empty: by its usual name) and its version. Errors as ``ask_program``."""
    return await ask_program(host, name or DEFAULT_BINARY, deadline, require_version)


async def find_setup(host: Runner, settings: Engine, deadline: float) -> Setup:
    """Look at Firecracker and the guest image. Raises :class:`BackendFailed` naming what is missing or broken."""
    return setup_of(await find_program(host, settings.binary, deadline), settings, _COMMAND_LINE)
