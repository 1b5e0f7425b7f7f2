"""What a cgroup uses, in three numbers: for those who look at many of them often. All of it is in ``statistics``."""

from __future__ import annotations

import os
from dataclasses import dataclass

from kuasar.core.cgroup.hierarchies import Hierarchies, current
from kuasar.core.cgroup.statistics import number, pairs


@dataclass(frozen=True)
class Usage:
    """Processor time since the cgroup was made, in nanoseconds; memory in bytes without files that nobody has used
    lately (Kubernetes' working set); threads."""

    cpu_ns: int = 0
    memory_bytes: int = 0
    pids: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.cpu_ns + other.cpu_ns, self.memory_bytes + other.memory_bytes, self.pids + other.pids)


def usage(path: str, at: Hierarchies | None = None) -> Usage:
    """Of the cgroup and what is below it. Nothing where it does not exist, or has not the controller."""
    hierarchies = at or current()
    if hierarchies.version == 2:
        directory = hierarchies.unified + path
        if not os.path.isdir(directory):
            return Usage()
        return Usage(
            pairs(f"{directory}/cpu.stat").get("usage_usec", 0) * 1000,
            _used(number(f"{directory}/memory.current"), f"{directory}/memory.stat", "inactive_file"),
            number(f"{directory}/pids.current"),
        )
    cpu, memory, pids = (hierarchies.path(controller, path) for controller in ("cpuacct", "memory", "pids"))
    return Usage(
        number(f"{cpu}/cpuacct.usage") if cpu else 0,
        _used(number(f"{memory}/memory.usage_in_bytes"), f"{memory}/memory.stat", "total_inactive_file")
        if memory
        else 0,
        number(f"{pids}/pids.current") if pids else 0,
    )


def _used(all_of_it: int, stat: str, inactive: str) -> int:
    return max(0, all_of_it - pairs(stat).get(inactive, 0))
