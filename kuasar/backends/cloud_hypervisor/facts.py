"""Which Cloud Hypervisor this host has, and what its machines boot."""

from __future__ import annotations

from kuasar.backends.boot_setup import Setup, ask_program, setup_of
from kuasar.backends.cloud_hypervisor.bodies import require_version
from kuasar.backends.probing import Probe, Runner
from kuasar.core.config import Engine

DEFAULT_BINARY = "cloud-hypervisor"
_COMMAND_LINE = "console=ttyS0 quiet panic=-1 cryptomgr.notests random.trust_cpu=on memhp_default_state=online"


async def find_program(host: Runner, name: str, deadline: float) -> Probe:
    """The program ``name`` (empty: by its usual name) and its version. Errors as ``ask_program``."""
    return await ask_program(host, name or DEFAULT_BINARY, deadline, require_version)


async def find_setup(host: Runner, settings: Engine, deadline: float) -> Setup:
    """Look at Cloud Hypervisor and the guest image. Raises :class:`BackendFailed` naming what is missing or broken."""
    return setup_of(await find_program(host, settings.binary, deadline), settings, _COMMAND_LINE)
