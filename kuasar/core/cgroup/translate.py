"""Statistics of a version 2 cgroup in the shape of version 1's.

A guest's cgroups are version 2 whatever the host's are; what reads a pod's metrics on a host of version 1 expects that
version's message. What version 2 does not count is left out or 0, never invented.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NO_LIMIT = 2**64 - 1
_V1_NO_LIMIT = 0x7FFFFFFFFFFFF000
"""What version 1 says for "unlimited"."""
# memory.stat of version 2 -> of version 1
_MEMORY = {
    "file": "cache",
    "anon": "rss",
    "anon_thp": "rss_huge",
    "file_mapped": "mapped_file",
    "file_dirty": "dirty",
    "file_writeback": "writeback",
    "pgfault": "pg_fault",
    "pgmajfault": "pg_maj_fault",
    "inactive_anon": "inactive_anon",
    "active_anon": "active_anon",
    "inactive_file": "inactive_file",
    "active_file": "active_file",
    "unevictable": "unevictable",
}
_IO = {
    "io_service_bytes_recursive": (("Read", "rbytes"), ("Write", "wbytes")),
    "io_serviced_recursive": (("Read", "rios"), ("Write", "wios")),
}


def v2_as_v1(stats: Mapping[str, Any]) -> dict[str, Any]:
    """``stats`` of version 2 (``statistics.py``) with the fields of version 1; those of version 1 as they are.

    Times become nanoseconds, "no limit" becomes version 1's number for it (0 for processes). Memory is counted with all
    cgroups below, so each count appears as its ``total_`` too.
    """
    if stats.get("version") != 2:
        return dict(stats)
    found: dict[str, Any] = {"version": 1, "cpu": _cpu(stats.get("cpu") or {})}
    if pids := stats.get("pids"):
        limit = pids.get("limit", _NO_LIMIT)
        found["pids"] = {"current": pids.get("current", 0), "limit": 0 if limit == _NO_LIMIT else limit}
    if memory := stats.get("memory"):
        events = stats.get("memory_events") or {}
        found["memory"] = _memory(memory, events)
        found["memory_oom_control"] = {"oom_kill_disable": 0, "under_oom": 0, "oom_kill": events.get("oom_kill", 0)}
    if io := stats.get("io"):
        found["blkio"] = _blkio(io.get("usage") or [])
    found["hugetlb"] = [
        {
            "pagesize": each.get("pagesize", ""),
            "usage": each.get("current", 0),
            "max": 0,  # the most that was used, which version 2 does not keep
            "failcnt": each.get("failcnt", 0),
        }
        for each in stats.get("hugetlb") or []
    ]
    return found


def _cpu(cpu: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "usage": {
            "total": cpu.get("usage_usec", 0) * 1000,
            "kernel": cpu.get("system_usec", 0) * 1000,
            "user": cpu.get("user_usec", 0) * 1000,
            "per_cpu": [],
        },
        "throttling": {
            "periods": cpu.get("nr_periods", 0),
            "throttled_periods": cpu.get("nr_throttled", 0),
            "throttled_time": cpu.get("throttled_usec", 0) * 1000,
        },
    }


def _memory(memory: Mapping[str, Any], events: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, old in _MEMORY.items():
        if name in memory:
            found[old] = found[f"total_{old}"] = memory[name]
    limit, swap_limit = _limit(memory.get("usage_limit")), _limit(memory.get("swap_limit"))
    usage, most = memory.get("usage", 0), memory.get("max_usage", 0)
    found["hierarchical_memory_limit"] = limit
    found["usage"] = {"limit": limit, "usage": usage, "max": most, "failcnt": events.get("max", 0)}
    # Version 1 counts memory and swap together.
    found["hierarchical_swap_limit"] = together = min(limit + swap_limit, _V1_NO_LIMIT)
    found["swap"] = {
        "limit": together,
        "usage": usage + memory.get("swap_usage", 0),
        "max": most + memory.get("swap_max_usage", 0),
        "failcnt": 0,
    }
    return found


def _limit(value: int | None) -> int:
    return _V1_NO_LIMIT if value is None or value >= _V1_NO_LIMIT else value


def _blkio(usage: list[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, parts in _IO.items():
        entries = []
        for each in usage:
            numbers = {"device": "", "major": each.get("major", 0), "minor": each.get("minor", 0)}
            values = [(op, each.get(key, 0)) for op, key in parts]
            values.append(("Total", sum(value for _, value in values)))
            entries += [{"op": op, **numbers, "value": value} for op, value in values]
        if entries:
            found[name] = entries
    return found
