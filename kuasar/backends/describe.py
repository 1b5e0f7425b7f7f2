"""``python -m kuasar.backends.describe``: which of the configured engines can be used on this host, as JSON.

A program of its own, so that neither the gateway nor the command line loads backends, and an engine's program that
hangs keeps nobody but us. Each engine has a deadline. Exits with 0 (the list is printed, whatever it says), 2 (usage).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from kuasar.backends.probing import Probe, ProbeHost
from kuasar.backends.registry import require_backend
from kuasar.core import log
from kuasar.core.aio import Loop
from kuasar.core.config import Config, ConfigError, Engine, load
from kuasar.core.errors import KuasarError, wrap
from kuasar.core.spawn import Children

SECONDS = 20.0
"""For one engine; they are asked side by side."""


@dataclass(frozen=True)
class Description:
    """One configured engine on this host."""

    name: str
    kind: str
    usable: bool
    reason: str = ""
    """Why it cannot be used."""
    binary: str = ""
    version: str = ""
    capabilities: list[str] = field(default_factory=list)
    details: dict[str, str] = field(default_factory=dict)


async def describe(loop: Loop, config: Config, seconds: float = SECONDS) -> list[Description]:
    """All engines of ``config``, sorted by name. Never raises for an engine."""
    host = ProbeHost(Children(loop))
    try:
        deadline = time.monotonic() + seconds
        tasks = [loop.spawn(_one(loop, host, config, name, deadline), name) for name in sorted(config.engines)]
        return [await task for task in tasks]
    finally:
        host.children.close()


async def _one(loop: Loop, host: ProbeHost, config: Config, name: str, deadline: float) -> Description:
    settings = config.engine(name)
    capabilities: list[str] = []
    try:
        backend = require_backend(settings.kind)
        capabilities = sorted(each.value for each in backend.capabilities)
        probe = await loop.wait_for(backend.probe(host, settings, deadline), deadline, f"the probe of engine {name}")
    except Exception as exc:
        error = wrap(exc, f"the probe of engine {name}")
        return Description(name, settings.kind, False, error.message, settings.binary, capabilities=capabilities)
    return _usable(name, settings, probe, capabilities)


def _usable(name: str, settings: Engine, probe: Probe, capabilities: list[str]) -> Description:
    details = dict(probe.details)
    return Description(name, settings.kind, True, "", probe.binary, probe.version, capabilities, details)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m kuasar.backends.describe", description="Say which engines can be used on this host."
    )
    parser.add_argument("--config", help="configuration file (default: /etc/kuasar/kuasar.toml)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for one engine (default: {SECONDS:g})")
    options = parser.parse_args(argv)
    try:
        config = load(options.config)
    except (ConfigError, KuasarError) as exc:
        print(exc, file=sys.stderr)
        return 2
    log.configure("warning", process="describe")
    loop = Loop()
    found = loop.run(describe(loop, config, options.seconds))
    print(json.dumps([asdict(each) for each in found], indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
