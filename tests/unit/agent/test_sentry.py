"""What the gVisor driver computes: limits of the shared kernel, a container's part of the figures, specifications."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuasar.agent.drivers.gvisor import member_spec, read_wait
from kuasar.agent.drivers.sentry.control import part_of
from kuasar.agent.drivers.sentry.kernel import find_runsc, pod_spec
from kuasar.agent.drivers.sentry.pause import pause_program
from kuasar.agent.drivers.shared_kernel.limits import KERNEL_BYTES, together
from kuasar.agent.drivers.shared_kernel.members import merged
from kuasar.core.errors import BackendFailed
from kuasar.core.spawn import Exit

MIB = 1024 * 1024


def limits(memory: int = 0, quota: int = 0, period: int = 0, shares: int = 0) -> dict[str, Any]:
    return {"memory": {"limit": memory}, "cpu": {"quota": quota, "period": period, "shares": shares}}


def test_a_container_alone_has_what_it_asked_for() -> None:
    found = together([limits(64 * MIB, 50_000, 100_000, 512)])
    assert found["memory"]["limit"] == 64 * MIB + KERNEL_BYTES
    assert found["cpu"] == {"quota": 50_000, "period": 100_000, "shares": 512}


def test_several_share_the_sum() -> None:
    found = together([limits(64 * MIB, 50_000, 100_000, 512), limits(MIB, 10_000, 20_000, 2)])
    assert found["memory"]["limit"] == 65 * MIB + KERNEL_BYTES
    assert found["cpu"] == {"quota": 100_000, "period": 100_000, "shares": 514}


@pytest.mark.parametrize("others", [[], [{}], [limits(MIB, 10_000), {}], [{"memory": None, "cpu": "much"}]])
def test_without_limits_of_all_there_is_none(others: list[dict[str, Any]]) -> None:
    found = together(others)
    assert found["memory"]["limit"] == -1
    assert found["cpu"]["quota"] == -1


@given(st.lists(st.builds(limits, st.integers(), st.integers(), st.integers(1), st.integers(0, 2**20))))
def test_the_kernel_can_take_what_comes_out(each: list[dict[str, Any]]) -> None:
    found = together(each)
    assert found["memory"]["limit"] == -1 or found["memory"]["limit"] > KERNEL_BYTES
    assert found["cpu"]["quota"] == -1 or found["cpu"]["quota"] >= 1000
    assert 2 <= found["cpu"]["shares"] <= 262_144


def answer(cpu: int = 0, **usage: int) -> dict[str, Any]:
    data = {"memory": {"usage": {"usage": 7}}, "pids": {"current": 3}, "cpu": {"usage": {"total": cpu}}}
    return {"containerUsage": usage or None, "event": {"data": data}}


def test_a_container_s_part_is_what_the_sentry_counts() -> None:
    whole = {
        "version": 1,
        "cpu": {"usage": {"total": 1000, "kernel": 400, "user": 600, "per_cpu": [1000]}, "throttling": {"periods": 1}},
        "memory": {"usage": {"limit": 9, "usage": 100}, "rss": 90, "cache": 5},
        "pids": {"current": 40, "limit": 0},
    }
    found = part_of(whole, "a", answer(a=30, b=10, pod=0))
    assert found["cpu"]["usage"] == {"total": 30, "kernel": 0, "user": 30, "per_cpu": []}
    assert found["cpu"]["throttling"] == {"periods": 1}
    assert found["memory"] == {"usage": {"limit": 9, "usage": 7}, "rss": 7, "total_rss": 7, "cache": 0}
    assert found["pids"] == {"current": 3, "limit": 0}
    assert part_of(whole, "a", answer(cpu=50))["cpu"]["usage"]["total"] == 50
    assert part_of(whole, "a", {"event": None})["memory"]["usage"]["usage"] == 0


def test_version_2_likewise() -> None:
    whole = {"version": 2, "cpu": {"usage_usec": 100, "nr_periods": 5}, "memory": {"usage": 50, "usage_limit": 60}}
    found = part_of(whole, "a", answer(a=2000, b=1))
    assert found["cpu"] == {"usage_usec": 2, "user_usec": 2, "system_usec": 0, "nr_periods": 5}
    assert (found["memory"]["usage"], found["memory"]["usage_limit"]) == (7, 60)


def test_updates_keep_what_they_do_not_name() -> None:
    old = limits(MIB, 1000, 2000, 512)
    assert merged(old, {"cpu": {"shares": 2}, "pids": {"limit": 5}}) == {
        "memory": old["memory"],
        "cpu": {**old["cpu"], "shares": 2},
        "pids": {"limit": 5},
    }


def test_ends() -> None:
    assert read_wait(b'{"id":"c","exitStatus":5}\n') == Exit(5)
    assert read_wait(b'{"id":"c","exitStatus":137}').shell_code == 137
    for words in (b"", b"waiting on container: EOF", b"[]", b'{"id":"c"}'):
        with pytest.raises(BackendFailed, match="runsc wait"):
            read_wait(words)


def test_specifications() -> None:
    first = {"linux": {"namespaces": [{"type": "pid", "path": "/proc/1/ns/pid"}, {"type": "mount"}]}}
    spec = pod_spec(first, "/r")
    kinds = {each["type"]: each.get("path") for each in spec["linux"]["namespaces"]}
    assert kinds == {
        "pid": "/proc/1/ns/pid",
        "ipc": None,
        "uts": None,
        "mount": None,
        "network": f"/proc/{os.getpid()}/ns/net",
    }
    member = member_spec({"annotations": {"mine": "kept"}})
    assert member["annotations"]["mine"] == "kept"
    assert member["annotations"]["io.kubernetes.cri.container-type"] == "container"
    assert member["annotations"]["io.kubernetes.cri.sandbox-id"] == spec["annotations"]["io.kubernetes.cri.sandbox-id"]


def test_the_pause_program_runs_and_waits(tmp_path: Path) -> None:
    path = tmp_path / "pause"
    path.write_bytes(pause_program())
    path.chmod(0o755)
    with subprocess.Popen([str(path)]) as process:
        process.terminate()
        assert process.wait(10) == -15
    assert len(pause_program("aarch64")) > len(pause_program("x86_64"))
    with pytest.raises(BackendFailed, match="sparc"):
        pause_program("sparc")


def test_a_missing_runsc_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackendFailed, match=r"gVisor needs the program /no/such/runsc.*kuasar\.toml"):
        find_runsc("/no/such/runsc")
    with pytest.raises(BackendFailed, match="no-such-runsc, which is not in"):
        find_runsc("no-such-runsc")
