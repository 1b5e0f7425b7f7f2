"""The WasmEdge engine: a pod is a set of namespaces, each container a Wasm module run by the ``wasmedge`` program."""

from __future__ import annotations

from typing import Any, ClassVar

from kuasar.backends.base import BINARY_HINT, Capability
from kuasar.backends.namespaces import NamespaceBackend
from kuasar.backends.probing import Probe, ProbeHost
from kuasar.core import config
from kuasar.core.spawn import MINIMAL_ENV


class Engine(NamespaceBackend):
    """Plain namespaces with the WasmEdge driver."""

    kind: ClassVar[str] = "wasmedge"
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.TTY, Capability.PAUSE, Capability.HOST_NETWORK}
    )

    @classmethod
    async def probe(cls, host: ProbeHost, settings: config.Engine, deadline: float) -> Probe:
        # the driver knows how a program with its own loader is started
        from kuasar.agent.drivers.wasm.native import find_program, inspect
        from kuasar.agent.drivers.wasmedge import available_plugins, require_version

        program = find_program(settings.binary or cls.kind, BINARY_HINT)
        record = f"{settings.cache_dir}/engine.json"
        env = {**MINIMAL_ENV, **({"WASMEDGE_PLUGIN_PATH": settings.plugin_dir} if settings.plugin_dir else {})}
        found = await inspect(host.children, program, ["--version"], record, env, deadline)
        version = require_version(program, found.version)
        return Probe(program, version, {"plugins": " ".join(available_plugins(found.version))})

    def driver(self) -> tuple[str, dict[str, Any]]:
        settings = self.settings
        return "wasmedge", {
            "binary": settings.binary,
            "cache_dir": settings.cache_dir,
            "plugin_dir": settings.plugin_dir,
        }
