"""What a worker needs of CRI's PodSandboxConfig: a frozen type with a total decoder (docs/bus.md, "PodSpec")."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kuasar.backends.sizes import BLOCK_BYTES, GUEST_BYTES, VMM_BYTES
from kuasar.core.errors import InvalidArgument


@dataclass(frozen=True)
class Dns:
    """``resolv.conf`` of the pod; all empty: the host's is copied."""

    servers: list[str] = field(default_factory=list)
    searches: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PodSpec:
    """A pod. ``resources`` and ``overhead`` hold CRI's LinuxContainerResources by field name."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    attempt: int = 0
    hostname: str = ""
    log_directory: str = ""
    dns: Dns | None = None
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    cgroup_parent: str = ""
    sysctls: dict[str, str] = field(default_factory=dict)
    host_network: bool = False
    host_pid: bool = False
    host_ipc: bool = False
    shared_pid: bool = False
    overhead: dict[str, int] = field(default_factory=dict)
    resources: dict[str, int] = field(default_factory=dict)

    def to_wire(self) -> dict[str, Any]:
        """The form that travels and is recorded."""
        return dataclasses.asdict(self)

    @classmethod
    def from_wire(cls, wire: object) -> PodSpec:
        """Total decoder; raises :class:`InvalidArgument` naming the field."""
        values = _checked(cls, wire, "config")
        if values.get("dns") is not None:
            values["dns"] = Dns(**_checked(Dns, values["dns"], "config.dns"))
        return cls(**values)


def wanted_size(pod: PodSpec) -> tuple[int, int]:
    """(processors, bytes of memory) of a machine that the pod's limits and overhead ask for; 0 where there is no
    limit: overhead alone is none."""
    (cpus, memory), (more_cpus, overhead) = (_limits(part) for part in (pod.resources, pod.overhead))
    return math.ceil(cpus + more_cpus) if cpus else 0, _memory_of_machine(memory, overhead) if memory else 0


def _limits(resources: Mapping[str, int]) -> tuple[float, int]:
    cpus = max(0, resources.get("cpu_quota", 0)) / (resources.get("cpu_period", 0) or 100_000)
    return cpus, max(0, resources.get("memory_limit_in_bytes", 0))


def _memory_of_machine(limit: int, overhead: int) -> int:
    """The kubelet limits the host's processes of a pod to ``limit + overhead``, and a guest fills what it has with
    files in the end: so the VMM's own part is left out, and the rounding to blocks that follows must not go above it
    either. Where the overhead is too small for that, it is more important that the containers fit."""
    needed, allowed = limit + GUEST_BYTES, limit + overhead - VMM_BYTES
    if allowed < needed:
        return max(needed, limit + overhead)
    return max(needed, allowed - (BLOCK_BYTES - 1))


def size_of(resources: Mapping[str, Any]) -> tuple[float, int]:
    """(processors, bytes of memory) that a container's OCI LinuxResources limit it to; 0 where there is no limit. Huge
    pages are not in it: see :func:`huge_pages_of`."""
    cpu, memory = resources.get("cpu") or {}, resources.get("memory") or {}
    quota, limit = cpu.get("quota") or 0, memory.get("limit") or 0
    return max(0, quota) / (cpu.get("period") or 100_000), max(0, limit)


def huge_pages_of(resources: Mapping[str, Any]) -> int:
    """Bytes of huge pages that a container's OCI LinuxResources allow, beside its memory."""
    limits = [each.get("limit") for each in resources.get("hugepageLimits") or [] if isinstance(each, Mapping)]
    return sum(limit for limit in limits if type(limit) is int and 0 < limit < _NO_LIMIT)


_NO_LIMIT = 1 << 60
_CHECKS: dict[str, Any] = {
    "str": lambda v: type(v) is str,
    "int": lambda v: type(v) is int,
    "bool": lambda v: type(v) is bool,
    "list[str]": lambda v: type(v) is list and all(type(i) is str for i in v),
    "dict[str, str]": lambda v: type(v) is dict and all(type(k) is str and type(i) is str for k, i in v.items()),
    "dict[str, int]": lambda v: type(v) is dict and all(type(k) is str and type(i) is int for k, i in v.items()),
    "Dns | None": lambda v: v is None or type(v) is dict,
}


def _checked(cls: type[Any], wire: object, where: str) -> dict[str, Any]:
    if not isinstance(wire, dict):
        raise InvalidArgument(f"{where}: a map is needed, got {type(wire).__name__}", field=where)
    types = {f.name: str(f.type) for f in dataclasses.fields(cls)}
    for name, value in wire.items():
        if name not in types:
            raise InvalidArgument(f"{where}.{name}: unknown field", field=f"{where}.{name}")
        if not _CHECKS[types[name]](value):
            raise InvalidArgument(
                f"{where}.{name}: {types[name]} is needed, got {value!r:.80}", field=f"{where}.{name}"
            )
    return dict(wire)
