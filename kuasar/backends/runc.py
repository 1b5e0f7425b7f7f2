"""The runc engine: a pod is a set of namespaces, its containers are made by an OCI runtime (runc, crun)."""

from __future__ import annotations

from typing import Any, ClassVar

from kuasar.backends.base import Capability
from kuasar.backends.namespaces import NamespaceBackend


class Engine(NamespaceBackend):
    """Plain namespaces with the OCI driver."""

    kind: ClassVar[str] = "runc"
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.EXEC, Capability.TTY, Capability.PAUSE, Capability.HOST_NETWORK}
    )

    def driver(self) -> tuple[str, dict[str, Any]]:
        return "oci", {"binary": self.settings.binary or "runc"}
