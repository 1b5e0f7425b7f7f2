"""The Wasmtime engine: a pod is a set of namespaces, each container a Wasm module in a process of its own."""

from __future__ import annotations

from typing import Any, ClassVar

from kuasar.backends.base import Capability
from kuasar.backends.namespaces import NamespaceBackend


class Engine(NamespaceBackend):
    """Plain namespaces with the Wasmtime driver."""

    kind: ClassVar[str] = "wasmtime"
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.TTY, Capability.PAUSE, Capability.HOST_NETWORK}
    )

    def driver(self) -> tuple[str, dict[str, Any]]:
        return "wasmtime", {"cache_dir": self.settings.cache_dir}
