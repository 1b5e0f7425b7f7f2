"""containerd's drop-in: the shipped one, for the sandboxers and the socket that ``kuasar.toml`` has, in the format of
the configuration that is to import it.

containerd reads each file by its own version. A file of version 3 below one of version 2 makes it drop all that the
latter says of CRI, with no more than a warning (seen with 2.1.9), so the drop-in follows its importer.
"""

from __future__ import annotations

import json
import tomllib
from typing import Any

from kuasar.core.config import Config
from kuasar.core.shipped import shipped

RUNTIME_TYPE = "io.containerd.kuasar.v2"
_PLUGINS = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
VERSIONS = tuple(sorted(_PLUGINS, reverse=True))
"""Formats that we can write, the newest first."""
_HEAD = """\
# What containerd has to know of kuasar: a proxy plugin and a runtime per sandboxer of {config}.
# Written by `kuasarctl install`, removed by `kuasarctl uninstall`.
version = {version}
"""


def _shipped_runtimes() -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = tomllib.loads(shipped("containerd/kuasar.toml"))["plugins"][_PLUGINS[3]][
        "containerd"
    ]["runtimes"]
    return tables


def runtimes(config: Config) -> dict[str, dict[str, Any]]:
    """The table of each runtime, by its name. A sandboxer of the operator's is treated as the shipped one whose engine
    is of the same kind."""
    known = _shipped_runtimes()
    tables: dict[str, dict[str, Any]] = {}
    for name, sandboxer in sorted(config.sandboxers.items()):
        kind = config.engine(sandboxer.engine).kind
        like = known.get(name) or known.get(f"kuasar-{kind}", {})
        tables[name] = {**like, "runtime_type": RUNTIME_TYPE, "sandboxer": name}
    return tables


def render(config: Config, version: int) -> str:
    """The text."""
    address = json.dumps(config.gateway.socket)
    parts = [_HEAD.format(config=config.path, version=version)]
    for name, table in runtimes(config).items():
        parts.append(f'\n[proxy_plugins.{_key(name)}]\n  type = "sandbox"\n  address = {address}\n')
        parts.append(f"\n[plugins.{_key(_PLUGINS[version])}.containerd.runtimes.{_key(name)}]\n")
        parts.extend(f"  {key} = {json.dumps(value)}\n" for key, value in table.items())
    return "".join(parts)


def _key(name: str) -> str:
    return name if name.replace("-", "").replace("_", "").isalnum() and name.isascii() else json.dumps(name)
