"""Version 2 from files as a kernel has written them: statistics and limits, on hosts whose kernel serves version 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from kuasar.api.gen.containerd.cgroups.v2 import metrics_pb2
from kuasar.core import cgroup
from kuasar.core.cgroup.hierarchies import Hierarchies
from kuasar.core.cgroup.usage import Usage, usage
from kuasar.core.errors import InvalidArgument, NotFound

FILES = {
    "cpu.stat": "usage_usec 1000\nuser_usec 700\nsystem_usec 300\nnr_periods 5\nnr_throttled 1\nthrottled_usec 9\n"
    "nice_usec 0\ncore_sched.force_idle_usec 0\n",
    "cpu.pressure": "some avg10=0.50 avg60=0.10 avg300=0.00 total=1234\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
    "pids.current": "3\n",
    "pids.max": "max\n",
    "memory.current": "4096\n",
    "memory.max": "8192\n",
    "memory.peak": "5000\n",
    "memory.swap.current": "0\n",
    "memory.swap.max": "max\n",
    "memory.stat": "anon 100\nfile 200\nkernel 1\nslab_reclaimable 5\nworkingset_refault_anon 2\nzswap 1\npgfault 77\n",
    "memory.events": "low 0\nhigh 0\nmax 4\noom 2\noom_kill 1\noom_group_kill 0\n",
    "io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n7:1\n",
    "hugetlb.2MB.current": "0\n",
    "hugetlb.2MB.max": "max\n",
    "hugetlb.2MB.events": "max 3\n",
    "hugetlb.2MB.rsvd.current": "0\n",
}


@pytest.fixture
def host(tmp_path: Path) -> Hierarchies:
    (tmp_path / "c").mkdir()
    for name, text in FILES.items():
        (tmp_path / "c" / name).write_text(text)
    return Hierarchies({}, str(tmp_path))


def test_statistics_are_containerds_message(host: Hierarchies) -> None:
    stats = cgroup.stats("/c", host)
    assert stats.pop("version") == 2
    message = ParseDict(stats, metrics_pb2.Metrics())  # no field unknown, none of a wrong type
    assert (message.cpu.usage_usec, message.cpu.psi.some.total) == (1000, 1234)
    assert (message.pids.current, message.pids.limit) == (3, 2**64 - 1)
    assert (message.memory.usage, message.memory.usage_limit, message.memory.anon) == (4096, 8192, 100)
    assert message.memory.swap_limit == 2**64 - 1
    assert message.memory_events.oom_kill == 1
    assert [(entry.major, entry.wbytes) for entry in message.io.usage] == [(8, 20), (7, 0)]
    assert [(entry.pagesize, entry.failcnt) for entry in message.hugetlb] == [("2MB", 3)]


def test_a_cgroup_that_is_not_there(host: Hierarchies) -> None:
    with pytest.raises(NotFound):
        cgroup.stats("/gone", host)
    with pytest.raises(NotFound):
        cgroup.apply("/gone", {"pids": {"limit": 5}}, host)


@pytest.mark.parametrize(
    ("resources", "file", "text"),
    [
        ({"memory": {"limit": 1 << 20}}, "memory.max", "1048576"),
        ({"memory": {"limit": 100, "swap": 150}}, "memory.swap.max", "50"),
        ({"memory": {"swap": -1}}, "memory.swap.max", "max"),
        ({"pids": {"limit": -1}}, "pids.max", "max"),
        ({"cpu": {"quota": 5000, "period": 10000}}, "cpu.max", "5000 10000"),
        ({"cpu": {"quota": -1}}, "cpu.max", "max 100000"),
        ({"cpu": {"shares": 2}}, "cpu.weight", "1"),
        ({"cpu": {"shares": 262144}}, "cpu.weight", "10000"),
        ({"cpu": {"shares": 1024}}, "cpu.weight", "39"),
        ({"unified": {"memory.high": "77"}}, "memory.high", "77"),
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": 4}]}, "hugetlb.2MB.max", "4"),
    ],
)
def test_limits(host: Hierarchies, resources: dict[str, Any], file: str, text: str) -> None:
    path = Path(host.unified) / "c" / file
    path.write_text("")
    cgroup.apply("/c", resources, host)
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("resources", "field"),
    [
        ({"memory": {"limit": "5"}}, "resources.memory.limit"),
        ({"memory": []}, "resources.memory"),
        ({"cpu": {"quota": True}}, "resources.cpu.quota"),
        ({"hugepageLimits": [{"pageSize": "../x", "limit": 4}]}, "resources.hugepageLimits[0]"),
        ({"unified": {"../../x": "1"}}, "resources.unified.../../x"),
    ],
)
def test_wrong_limits_are_named(host: Hierarchies, resources: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        cgroup.apply("/c", resources, host)
    assert raised.value.field.startswith(field)


def test_usage_leaves_out_files_that_nobody_uses(tmp_path: Path, host: Hierarchies) -> None:
    directory = tmp_path / "pod"
    directory.mkdir()
    for name, text in {
        "cpu.stat": "usage_usec 1500\nuser_usec 1000\n",
        "memory.current": "1000000\n",
        "memory.stat": "anon 5\ninactive_file 300000\n",
        "pids.current": "7\n",
    }.items():
        (directory / name).write_text(text)
    assert usage("/pod", host) == Usage(cpu_ns=1_500_000, memory_bytes=700_000, pids=7)
    assert usage("/pod", host) + Usage(1, 2, 3) == Usage(1_500_001, 700_002, 10)
    assert usage("/gone", host) == Usage()
