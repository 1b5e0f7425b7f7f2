"""The Wasmtime engine: a pod is a set of namespaces, each container a Wasm module in a process of its own."""

from __future__ import annotations

import importlib.metadata
import os
from typing import Any, ClassVar

from kuasar.backends.base import Capability
from kuasar.backends.namespaces import NamespaceBackend
from kuasar.backends.probing import Probe, ProbeHost
from kuasar.core import config
from kuasar.core.errors import BackendFailed


class Engine(NamespaceBackend):
    """Plain namespaces with the Wasmtime driver."""

    kind: ClassVar[str] = "wasmtime"
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.TTY, Capability.PAUSE, Capability.HOST_NETWORK}
    )

    @classmethod
    async def probe(cls, host: ProbeHost, settings: config.Engine, deadline: float) -> Probe:
        try:
            import wasmtime  # its library is loaded here, which is what the agent will do
        except (ImportError, OSError) as exc:
            raise BackendFailed(f"the Python package wasmtime cannot be loaded: {exc}") from exc
        return Probe(os.path.dirname(wasmtime.__file__), importlib.metadata.version("wasmtime"))

    def driver(self) -> tuple[str, dict[str, Any]]:
        return "wasmtime", {"cache_dir": self.settings.cache_dir}
