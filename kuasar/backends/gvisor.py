"""The gVisor engine: the containers of a pod are processes of a kernel of their own, runsc's sentry."""

from __future__ import annotations

from typing import Any, ClassVar

from kuasar.backends.base import BINARY_HINT, Capability, MachineSpec
from kuasar.backends.namespaces import NamespaceBackend
from kuasar.backends.probing import Probe, ProbeHost, ask_version
from kuasar.core import config
from kuasar.core.errors import Unimplemented


class Engine(NamespaceBackend):
    """The agent is on the host as for runc; the gVisor driver is what puts the containers elsewhere."""

    kind: ClassVar[str] = "gvisor"
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.EXEC, Capability.TTY, Capability.PAUSE, Capability.HOST_NETWORK}
    )
    uses_host_cgroups: ClassVar[bool] = False

    @classmethod
    async def probe(cls, host: ProbeHost, settings: config.Engine, deadline: float) -> Probe:
        return await ask_version(host, settings.binary or "runsc", BINARY_HINT, deadline)

    def driver(self) -> tuple[str, dict[str, Any]]:
        settings = self.settings
        return "gvisor", {
            "binary": settings.binary,
            "cache_dir": settings.cache_dir,
            "platform": settings.platform,
        }

    async def launch(self, spec: MachineSpec, deadline: float | None) -> None:
        for wanted, what in ((spec.host_pid, "processes"), (spec.host_ipc, "IPC objects")):
            if wanted:
                words = f"engine gvisor: a pod has a kernel of its own and cannot share the host's {what}"
                raise Unimplemented(words, engine=self.kind, capability="host-pid" if spec.host_pid else "host-ipc")
        await super().launch(spec, deadline)
