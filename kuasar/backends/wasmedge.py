"""The WasmEdge engine: a pod is a set of namespaces, each container a Wasm module run by the ``wasmedge`` program."""

from __future__ import annotations

from typing import Any, ClassVar

from kuasar.backends.base import Capability
from kuasar.backends.namespaces import NamespaceBackend


class Engine(NamespaceBackend):
    """Plain namespaces with the WasmEdge driver."""

    kind: ClassVar[str] = "wasmedge"
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.TTY, Capability.PAUSE, Capability.HOST_NETWORK}
    )

    def driver(self) -> tuple[str, dict[str, Any]]:
        settings = self.settings
        return "wasmedge", {
            "binary": settings.binary,
            "cache_dir": settings.cache_dir,
            "plugin_dir": settings.plugin_dir,
        }
