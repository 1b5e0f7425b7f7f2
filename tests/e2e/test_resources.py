"""Limits hold, can be changed while a container runs, and usage is reported as it changes."""

from __future__ import annotations

import pytest

from kuasar.api.gen.cri.v1.common_pb2 import LinuxContainerResources
from kuasar.api.gen.cri.v1.stats_pb2 import ContainerStats, PodSandboxStats
from tests.deadline import eventually
from tests.e2e import cgroups
from tests.e2e.engines import OWN_LIMITS, SHARED_KERNEL, SHELL, STATS, UPDATE
from tests.e2e.harness import Pod

MIB = 1 << 20


@pytest.mark.needs(SHELL)
def test_out_of_memory_is_said(pod: Pod) -> None:
    container = pod.run(pod.engine.programs.hog(), resources=LinuxContainerResources(memory_limit_in_bytes=64 * MIB))
    status = container.wait()
    assert status.exit_code == 137
    # the kernel's notice and the end of the process come on different ways
    eventually(lambda: container.status().reason, "the reason", until=lambda reason: reason == "OOMKilled")


@pytest.mark.needs(SHELL, OWN_LIMITS)
def test_out_of_memory_of_one_leaves_the_other(pod: Pod) -> None:
    other = pod.run_idle("other")
    small = LinuxContainerResources(memory_limit_in_bytes=64 * MIB)
    assert pod.run(pod.engine.programs.hog(), "hog", resources=small).wait().exit_code == 137
    assert other.running()
    assert pod.ready


@pytest.mark.needs(SHARED_KERNEL)
def test_limits_are_set(pod: Pod) -> None:
    wanted = LinuxContainerResources(
        memory_limit_in_bytes=128 * MIB, cpu_shares=512, cpu_period=100000, cpu_quota=150000
    )
    pid = pod.run_idle(resources=wanted).pid
    assert cgroups.read(pid, "memory.limit") == str(128 * MIB)
    assert cgroups.read(pid, "cpu.quota").split()[0] == "150000"
    if not cgroups.UNIFIED:
        assert cgroups.read(pid, "cpu.shares") == "512"


@pytest.mark.needs(UPDATE, SHARED_KERNEL)
def test_limits_are_changed_while_it_runs(pod: Pod) -> None:
    container = pod.run_idle(resources=LinuxContainerResources(memory_limit_in_bytes=128 * MIB, cpu_shares=512))
    pod.cri.update_resources(
        container.id,
        LinuxContainerResources(memory_limit_in_bytes=96 * MIB, cpu_shares=256, cpu_period=100000, cpu_quota=50000),
    )
    pid = container.pid
    assert cgroups.read(pid, "memory.limit") == str(96 * MIB)
    assert cgroups.read(pid, "cpu.quota").split()[0] == "50000"
    if not cgroups.UNIFIED:
        assert cgroups.read(pid, "cpu.shares") == "256"
    assert container.running()
    assert container.status().resources.linux.memory_limit_in_bytes == 96 * MIB


@pytest.mark.needs(SHARED_KERNEL)
def test_containers_have_groups_of_their_own_below_the_pod_s_parent(pod: Pod) -> None:
    paths = {cgroups.path_of(pod.run_idle(name).pid, "memory") for name in ("one", "two")}
    assert len(paths) == 2
    assert all(path.startswith(pod.config.linux.cgroup_parent + "/") for path in paths)


@pytest.mark.needs(STATS)
def test_processor_time_grows_with_the_load(pod: Pod) -> None:
    idle = pod.run_idle("idle")
    busy = pod.run(pod.engine.programs.spin(), "busy")
    busy.wait_for_log(b"spinning")

    def used(stats: ContainerStats) -> int:
        return stats.cpu.usage_core_nano_seconds.value

    before = {one.name: used(pod.cri.stats(one.id)) for one in (idle, busy)}
    eventually(
        lambda: used(pod.cri.stats(busy.id)) - before["busy"], "a busy second", until=lambda grown: grown > 500_000_000
    )
    assert used(pod.cri.stats(idle.id)) - before["idle"] < 100_000_000


@pytest.mark.needs(STATS)
def test_memory_grows_with_the_load(pod: Pod) -> None:
    idle = pod.run_idle("idle")
    holding = pod.run(pod.engine.programs.hold(), "holding")
    holding.wait_for_log(b"ready")
    more, less = (pod.cri.stats(one.id).memory.working_set_bytes.value for one in (holding, idle))
    assert more >= 32 * MIB
    assert more - less >= 24 * MIB


@pytest.mark.needs(STATS)
def test_stats_name_their_container(pod: Pod) -> None:
    container = pod.run_idle("named", labels={"app": "stats"})
    (stats,) = pod.cri.list_stats(pod=pod.id)
    assert stats.attributes.id == container.id
    assert stats.attributes.metadata.name == "named"
    assert dict(stats.attributes.labels) == {"app": "stats"}
    assert stats.cpu.timestamp > 0


@pytest.mark.needs(STATS)
def test_a_pod_has_stats(pod: Pod) -> None:
    container = pod.run(pod.engine.programs.spin())
    container.wait_for_log(b"spinning")

    def containers(stats: PodSandboxStats) -> list[str]:
        return [one.attributes.id for one in stats.linux.containers]

    stats = pod.cri.pod_stats(pod.id)
    assert stats.attributes.id == pod.id
    assert containers(stats) == [container.id]
    before = stats.linux.containers[0].cpu.usage_core_nano_seconds.value
    eventually(
        lambda: pod.cri.pod_stats(pod.id).linux.containers[0].cpu.usage_core_nano_seconds.value,
        "the pod's stats follow the load",
        until=lambda used: used > before,
    )
