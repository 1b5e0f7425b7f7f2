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
from kuasar.workers.pod import huge_pages_of, size_of, wanted_size
from kuasar.workers.sandbox import Sandbox


def note_limits(facts: dict[str, Any], resources: Mapping[str, Any]) -> None:
    """Write into a container's facts what it is limited to; a limit that ``resources`` does not name stays."""
    cpus, memory = size_of(resources)
    known = facts.get("size", (0, 0))
    facts["size"] = [cpus or known[0], memory or known[1]]
    if huge_pages_of(resources):
        facts["huge_pages"] = huge_pages_of(resources)


async def fit_machine(sandbox: Sandbox, deadline: float | None) -> None:
    """Have the machine grow to what its containers need, if it can and the pod has not said its size."""
    backend, pod = sandbox.backend, sandbox.record.pod
    if Capability.RESIZE not in backend.capabilities:
        return
    sizes = [facts.get("size", (0, 0)) for facts in sandbox.record.containers.values()]
    cpus, memory = sum(size[0] for size in sizes), sum(size[1] for size in sizes)
    vcpus = 0 if pod.resources.get("cpu_quota", 0) > 0 else math.ceil(cpus)
    # the limits of memory are not about huge pages, so these come on top of whatever they make
    huge = sum(facts.get("huge_pages", 0) for facts in sandbox.record.containers.values())
    of_pod = wanted_size(pod)[1]
    wanted = of_pod or (memory + GUEST_BYTES if memory else 0)
    if huge:
        wanted = (wanted or GUEST_BYTES) + huge
    elif of_pod:
        wanted = 0  # it has that from its start
    await backend.resize(vcpus, wanted, deadline)
