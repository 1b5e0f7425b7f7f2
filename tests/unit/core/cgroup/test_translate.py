"""A guest's statistics on a host whose cgroups are of version 1."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format

from kuasar.api.gen.containerd.cgroups.v1 import metrics_pb2 as v1
from kuasar.core.cgroup.translate import v2_as_v1

UNLIMITED_2, UNLIMITED_1 = 2**64 - 1, 0x7FFFFFFFFFFFF000

STATS: dict[str, Any] = {
    "version": 2,
    "cpu": {"usage_usec": 5, "user_usec": 3, "system_usec": 2, "nr_periods": 7, "nr_throttled": 1, "throttled_usec": 9},
    "pids": {"current": 4, "limit": 100},
    "memory": {"anon": 10, "file": 20, "pgfault": 30, "inactive_file": 5, "slab": 1}
    | {"usage": 64, "usage_limit": 1024, "max_usage": 99, "swap_usage": 6, "swap_limit": 512, "swap_max_usage": 8},
    "memory_events": {"max": 11, "oom_kill": 2},
    "io": {"usage": [{"major": 254, "minor": 16, "rbytes": 1, "wbytes": 2, "rios": 3, "wios": 4}]},
    "hugetlb": [{"pagesize": "2MB", "current": 2097152, "max": 4194304, "failcnt": 3}],
}


def test_it_fits_the_message_of_version_1() -> None:
    found = v2_as_v1(STATS)
    assert found.pop("version") == 1
    message = json_format.ParseDict(found, v1.Metrics())
    assert (message.cpu.usage.total, message.cpu.usage.user, message.cpu.usage.kernel) == (5000, 3000, 2000)
    assert (message.cpu.throttling.periods, message.cpu.throttling.throttled_time) == (7, 9000)
    assert (message.pids.current, message.pids.limit) == (4, 100)
    assert (message.memory.rss, message.memory.total_rss) == (10, 10)
    assert (message.memory.cache, message.memory.total_inactive_file, message.memory.pg_fault) == (20, 5, 30)
    usage = message.memory.usage
    assert (usage.usage, usage.limit, usage.max, usage.failcnt) == (64, 1024, 99, 11)
    assert (message.memory.swap.usage, message.memory.swap.limit, message.memory.swap.max) == (70, 1536, 107)
    assert message.memory_oom_control.oom_kill == 2
    read, write, total = message.blkio.io_service_bytes_recursive
    assert [(each.op, each.value, each.major, each.minor) for each in (read, write, total)] == [
        ("Read", 1, 254, 16),
        ("Write", 2, 254, 16),
        ("Total", 3, 254, 16),
    ]
    assert [each.value for each in message.blkio.io_serviced_recursive] == [3, 4, 7]
    assert (message.hugetlb[0].pagesize, message.hugetlb[0].usage, message.hugetlb[0].failcnt) == ("2MB", 2097152, 3)


def test_no_limit_is_said_as_version_1_says_it() -> None:
    memory = STATS["memory"] | {"usage_limit": UNLIMITED_2, "swap_limit": UNLIMITED_2}
    found = v2_as_v1(STATS | {"memory": memory, "pids": {"current": 1, "limit": UNLIMITED_2}})
    assert found["pids"]["limit"] == 0
    assert found["memory"]["usage"]["limit"] == found["memory"]["swap"]["limit"] == UNLIMITED_1
    assert found["memory"]["hierarchical_memory_limit"] == UNLIMITED_1


@pytest.mark.parametrize("missing", ["pids", "memory", "memory_events", "io", "hugetlb", "cpu"])
def test_a_controller_that_is_not_there_is_left_out(missing: str) -> None:
    found = v2_as_v1({name: value for name, value in STATS.items() if name != missing})
    del found["version"]
    json_format.ParseDict(found, v1.Metrics())
    if missing in ("pids", "memory"):
        assert missing not in found


def test_what_is_version_1_stays_as_it_is() -> None:
    stats = {"version": 1, "pids": {"current": 3, "limit": 0}}
    assert v2_as_v1(stats) == stats
