"""The Quark engine: the containers of a pod are processes of a kernel of their own, a ``quark sandbox``."""

from __future__ import annotations

import os
import re
from typing import Any, ClassVar

from kuasar.agent.drivers.quark.settings import load
from kuasar.backends.base import BINARY_HINT, Capability, MachineSpec
from kuasar.backends.namespaces import NamespaceBackend
from kuasar.backends.probing import Probe, ProbeHost, ask_version
from kuasar.core import config
from kuasar.core.errors import BackendFailed, Unimplemented

KVM = "/dev/kvm"
_VERSION = re.compile(r"^qvisor (\S+)", re.MULTILINE)


class Engine(NamespaceBackend):
    """The agent is on the host as for runc; the Quark driver is what puts the containers elsewhere."""

    kind: ClassVar[str] = "quark"
    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.EXEC, Capability.HOST_NETWORK})
    uses_host_cgroups: ClassVar[bool] = False

    @classmethod
    async def probe(cls, host: ProbeHost, settings: config.Engine, deadline: float) -> Probe:
        found = await ask_version(host, settings.binary or "quark", BINARY_HINT, deadline, _VERSION)
        load()
        _require_kvm()
        return found

    def driver(self) -> tuple[str, dict[str, Any]]:
        return "quark", {"binary": self.settings.binary}

    async def launch(self, spec: MachineSpec, deadline: float | None) -> None:
        for wanted, what in ((spec.host_pid, "processes"), (spec.host_ipc, "IPC objects")):
            if wanted:
                words = f"engine quark: a pod has a kernel of its own and cannot share the host's {what}"
                raise Unimplemented(words, engine=self.kind, capability="host-pid" if spec.host_pid else "host-ipc")
        await super().launch(spec, deadline)


def _require_kvm() -> None:
    if not os.access(KVM, os.R_OK | os.W_OK):
        raise BackendFailed(f"Quark needs {KVM}, which is not there or cannot be opened")
