"""Machines that grow with their containers: what the limits of all of them need together, where the pod has none
itself.

Kubernetes gives a pod's limits with the pod; other callers of CRI give limits with the containers alone, when the
machine is running already. What a container is limited to is in the record, so that a successor counts the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kuasar.backends.base import Capability
from kuasar.backends.sizes import GUEST_BYTES
from kuasar.workers.pod import size_of
from kuasar.workers.sandbox import Sandbox


def note_limits(facts: dict[str, Any], resources: Mapping[str, Any]) -> None:
    """Write into a container's facts what it is limited to; a limit that ``resources`` does not name stays."""
    cpus, memory = size_of(resources)
    known = facts.get("size", (0, 0))
    facts["size"] = [cpus or known[0], memory or known[1]]


async def fit_machine(sandbox: Sandbox, deadline: float | None) -> None:
    """Have the machine grow to what its containers need, if it can and the pod has not said its size."""
    backend, pod = sandbox.backend, sandbox.record.pod
    if Capability.RESIZE not in backend.capabilities:
        return
    sizes = [facts.get("size", (0, 0)) for facts in sandbox.record.containers.values()]
    cpus, memory = sum(size[0] for size in sizes), sum(size[1] for size in sizes)
    vcpus = 0 if pod.resources.get("cpu_quota", 0) > 0 else math.ceil(cpus)
    wanted = 0 if pod.resources.get("memory_limit_in_bytes", 0) > 0 or not memory else memory + GUEST_BYTES
    await backend.resize(vcpus, wanted, deadline)
