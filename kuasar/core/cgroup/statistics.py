"""What a cgroup has used, as one map: the fields of containerd's metrics of the host's version, plus ``version``.

``version`` 1: the map follows ``io.containerd.cgroups.v1.Metrics`` field by field (``pids``, ``cpu``, ``memory``,
``memory_oom_control``, ``blkio``, ``hugetlb``), version 2: ``io.containerd.cgroups.v2.Metrics`` (``pids``, ``cpu``,
``memory``, ``memory_events``, ``io``, ``hugetlb``). Times are in the unit of that message (version 1: nanoseconds,
version 2: microseconds), sizes in bytes. A controller that the host has not leaves its part out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from kuasar.core.cgroup.hierarchies import Hierarchies, current
from kuasar.core.errors import NotFound

_NO_LIMIT = 2**64 - 1
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
# Names in memory.stat that differ from those in the metrics.
_V1_MEMORY_NAMES = {
    "pgpgin": "pg_pg_in",
    "pgpgout": "pg_pg_out",
    "pgfault": "pg_fault",
    "pgmajfault": "pg_maj_fault",
    "hierarchical_memsw_limit": "hierarchical_swap_limit",
}
_V1_MEMORY = frozenset(
    {"cache", "rss", "rss_huge", "mapped_file", "dirty", "writeback", "pgpgin", "pgpgout", "pgfault", "pgmajfault"}
    | {"inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable"}
)
_V2_MEMORY = frozenset(
    {"anon", "file", "kernel_stack", "slab", "sock", "shmem", "file_mapped", "file_dirty", "file_writeback", "anon_thp"}
    | {"inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable", "slab_reclaimable"}
    | {"slab_unreclaimable", "pgfault", "pgmajfault", "workingset_nodereclaim", "pgrefill", "pgscan", "pgsteal"}
    | {"pgactivate", "pgdeactivate", "pglazyfree", "pglazyfreed", "thp_fault_alloc", "thp_collapse_alloc"}
    | {"workingset_refault_anon", "workingset_refault_file", "workingset_activate_anon", "workingset_activate_file"}
)
_V2_CPU = ("usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec")
_V2_EVENTS = frozenset({"low", "high", "max", "oom", "oom_kill", "oom_group_kill"})


def stats(path: str, at: Hierarchies | None = None) -> dict[str, Any]:
    """The statistics of the cgroup now. Raises :class:`NotFound` when it does not exist."""
    hierarchies = at or current()
    read = _version1 if hierarchies.version == 1 else _version2
    found = read(hierarchies, path)
    if not found:
        raise NotFound(f"cgroup {path} does not exist")
    return {"version": hierarchies.version, **found}


# -- version 1 ---------------------------------------------------------------------------------------------------------


def _version1(hierarchies: Hierarchies, path: str) -> dict[str, Any]:
    parts: dict[str, Callable[[str], Any]] = {
        "pids": _v1_pids,
        "memory": _v1_memory,
        "blkio": _v1_blkio,
        "hugetlb": _v1_hugetlb,
    }
    found: dict[str, Any] = {}
    for controller, read in parts.items():
        directory = hierarchies.path(controller, path)
        if directory and os.path.isdir(directory):
            found[controller] = read(directory)
            if controller == "memory":
                control = pairs(f"{directory}/memory.oom_control")
                found["memory_oom_control"] = {
                    name: control.get(name, 0) for name in ("oom_kill_disable", "under_oom", "oom_kill")
                }
    cpu = _v1_cpu(hierarchies.path("cpuacct", path), hierarchies.path("cpu", path))
    return found | ({"cpu": cpu} if cpu else {})


def _v1_pids(directory: str) -> dict[str, int]:
    return {
        "current": number(f"{directory}/pids.current"),
        "limit": number(f"{directory}/pids.max", unlimited=0),
    }


def _v1_cpu(accounting: str | None, control: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if accounting and os.path.isdir(accounting):
        ticks = pairs(f"{accounting}/cpuacct.stat")
        found["usage"] = {
            "total": number(f"{accounting}/cpuacct.usage"),
            "kernel": number(f"{accounting}/cpuacct.usage_sys") or ticks.get("system", 0) * _TICK_NS,
            "user": number(f"{accounting}/cpuacct.usage_user") or ticks.get("user", 0) * _TICK_NS,
            "per_cpu": [int(n) for n in _text(f"{accounting}/cpuacct.usage_percpu").split()],
        }
    if control and os.path.isdir(control):
        throttled = pairs(f"{control}/cpu.stat")
        found["throttling"] = {
            "periods": throttled.get("nr_periods", 0),
            "throttled_periods": throttled.get("nr_throttled", 0),
            "throttled_time": throttled.get("throttled_time", 0),
        }
    return found


def _v1_memory(directory: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs(f"{directory}/memory.stat").items():
        plain = name.removeprefix("total_")
        if plain in _V1_MEMORY:
            found[name.removesuffix(plain) + _V1_MEMORY_NAMES.get(plain, plain)] = value
        elif name.startswith("hierarchical_"):
            found[_V1_MEMORY_NAMES.get(name, name)] = value
    for key, prefix in (
        ("usage", "memory."),
        ("swap", "memory.memsw."),
        ("kernel", "memory.kmem."),
        ("kernel_tcp", "memory.kmem.tcp."),
    ):
        if os.path.exists(f"{directory}/{prefix}usage_in_bytes"):
            found[key] = {
                "limit": number(f"{directory}/{prefix}limit_in_bytes"),
                "usage": number(f"{directory}/{prefix}usage_in_bytes"),
                "max": number(f"{directory}/{prefix}max_usage_in_bytes"),
                "failcnt": number(f"{directory}/{prefix}failcnt"),
            }
    return found


def _v1_blkio(directory: str) -> dict[str, Any]:
    # The throttle files count whatever the scheduler; the others exist for bfq or cfq devices only.
    sources = {
        "io_service_bytes_recursive": ("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"),
        "io_serviced_recursive": ("blkio.throttle.io_serviced_recursive", "blkio.throttle.io_serviced"),
    }
    for name in ("io_queued", "io_service_time", "io_wait_time", "io_merged", "io_time", "sectors"):
        plain = name.removeprefix("io_") if name == "io_time" else name
        sources[f"{name}_recursive"] = (f"blkio.bfq.{plain}_recursive", f"blkio.{plain}_recursive")
    return {name: entries for name, files in sources.items() if (entries := _blkio_entries(directory, files))}


def _blkio_entries(directory: str, files: tuple[str, str]) -> list[dict[str, Any]]:
    text = next((found for name in files if (found := _text(f"{directory}/{name}"))), "")
    entries = []
    for line in text.splitlines():
        device, _, rest = line.partition(" ")
        major, colon, minor = device.partition(":")
        words = rest.split()
        if not colon or not words:
            continue  # the grand total
        op = words[0] if len(words) > 1 else ""
        entries.append(
            {
                "op": op,
                "device": _device_name(device),
                "major": int(major),
                "minor": int(minor),
                "value": int(words[-1]),
            }
        )
    return entries


def _device_name(numbers: str) -> str:
    try:
        return "/dev/" + os.path.basename(os.readlink(f"/sys/dev/block/{numbers}"))
    except OSError:
        return ""


def _v1_hugetlb(directory: str) -> list[dict[str, Any]]:
    return [
        {
            "pagesize": size,
            "usage": number(f"{directory}/hugetlb.{size}.usage_in_bytes"),
            "max": number(f"{directory}/hugetlb.{size}.max_usage_in_bytes"),
            "failcnt": number(f"{directory}/hugetlb.{size}.failcnt"),
        }
        for size in _page_sizes(directory, ".usage_in_bytes")
    ]


def _page_sizes(directory: str, suffix: str) -> list[str]:
    names = (name for name in os.listdir(directory) if name.startswith("hugetlb.") and name.endswith(suffix))
    return sorted(size for name in names if "." not in (size := name[len("hugetlb.") : -len(suffix)]))


# -- version 2 ---------------------------------------------------------------------------------------------------------


def _version2(hierarchies: Hierarchies, path: str) -> dict[str, Any]:
    directory = hierarchies.unified + path
    if not os.path.isdir(directory):
        return {}
    cpu = pairs(f"{directory}/cpu.stat")
    found: dict[str, Any] = {
        "cpu": {name: cpu[name] for name in (*_V2_CPU, "nr_bursts", "burst_usec") if name in cpu}
        | _pressure(f"{directory}/cpu.pressure")
    }
    if os.path.exists(f"{directory}/pids.current"):
        limit = number(f"{directory}/pids.max", unlimited=_NO_LIMIT)
        found["pids"] = {"current": number(f"{directory}/pids.current"), "limit": limit}
    if os.path.exists(f"{directory}/memory.current"):
        found["memory"] = _v2_memory(directory)
        events = pairs(f"{directory}/memory.events")
        found["memory_events"] = {name: value for name, value in events.items() if name in _V2_EVENTS}
    if os.path.exists(f"{directory}/io.stat"):
        found["io"] = {"usage": _v2_io(f"{directory}/io.stat")} | _pressure(f"{directory}/io.pressure")
    found["hugetlb"] = [
        {
            "pagesize": size,
            "current": number(f"{directory}/hugetlb.{size}.current"),
            "max": number(f"{directory}/hugetlb.{size}.max", unlimited=_NO_LIMIT),
            "failcnt": pairs(f"{directory}/hugetlb.{size}.events").get("max", 0),
        }
        for size in _page_sizes(directory, ".current")
        if not size.endswith(".rsvd")
    ]
    return found


def _v2_memory(directory: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: value for name, value in pairs(f"{directory}/memory.stat").items() if name in _V2_MEMORY
    }
    found |= {
        "usage": number(f"{directory}/memory.current"),
        "usage_limit": number(f"{directory}/memory.max", unlimited=_NO_LIMIT),
        "max_usage": number(f"{directory}/memory.peak"),
        "swap_usage": number(f"{directory}/memory.swap.current"),
        "swap_limit": number(f"{directory}/memory.swap.max", unlimited=_NO_LIMIT),
        "swap_max_usage": number(f"{directory}/memory.swap.peak"),
    }
    return found | _pressure(f"{directory}/memory.pressure")


def _v2_io(file: str) -> list[dict[str, int]]:
    entries = []
    for line in _text(file).splitlines():
        device, *values = line.split()
        major, colon, minor = device.partition(":")
        if not colon:
            continue
        entry = {"major": int(major), "minor": int(minor)}
        for value in values:
            name, _, number = value.partition("=")
            if name in ("rbytes", "wbytes", "rios", "wios"):
                entry[name] = int(number)
        entries.append(entry)
    return entries


def _pressure(file: str) -> dict[str, Any]:
    """``{"psi": …}``, or nothing where the kernel does not measure pressure."""
    kinds: dict[str, dict[str, float | int]] = {}
    for line in _text(file).splitlines():
        kind, *values = line.split()
        pairs = dict(value.partition("=")[::2] for value in values)
        kinds[kind] = {name: int(text) if name == "total" else float(text) for name, text in pairs.items()}
    return {"psi": kinds} if kinds else {}


# -- files -------------------------------------------------------------------------------------------------------------


def _text(file: str) -> str:
    """The file's text; empty when the kernel has no such file, or refuses to read it on this controller."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        chunks = []
        while chunk := os.read(fd, 65536):
            chunks.append(chunk)
        return b"".join(chunks).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(fd)


def number(file: str, unlimited: int = 0) -> int:
    """The file's number, ``unlimited`` for ``max``; 0 when the kernel has no such file."""
    text = _text(file).strip()
    return int(text) if text.isdigit() else unlimited if text == "max" else 0


def pairs(file: str) -> Mapping[str, int]:
    """Lines of ``name number``."""
    found = {}
    for line in _text(file).splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            found[name] = int(value)
    return found
