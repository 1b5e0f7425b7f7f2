"""Which Cloud Hypervisor this host has."""

from __future__ import annotations

from kuasar.backends.base import BINARY_HINT
from kuasar.backends.cloud_hypervisor.bodies import require_version
from kuasar.backends.probing import Probe, ProbeHost, require_program
from kuasar.core.errors import BackendFailed

DEFAULT_BINARY = "cloud-hypervisor"


async def find_program(host: ProbeHost, name: str, deadline: float) -> Probe:
    """The program ``name`` (empty: by its usual name) and its version. Raises :class:`BackendFailed` naming what is
    missing, broken or too old, and the key that sets it; DeadlineExceeded if it hangs."""
    binary = require_program(name or DEFAULT_BINARY, BINARY_HINT)
    done = await host.run([binary, "--version"], deadline)
    words = done.output.decode(errors="replace").strip()
    if done.exit.shell_code:
        raise BackendFailed(f"{binary} --version {done.exit.words}: {words:.300}; {BINARY_HINT}")
    return Probe(binary, require_version(binary, words))
