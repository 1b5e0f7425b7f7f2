"""How large a machine gets: limits plus overhead, whole blocks, floor and ceiling."""

from __future__ import annotations

import pytest

from kuasar.backends.sizes import BLOCK_BYTES, GUEST_BYTES, VMM_BYTES, Size, size_for
from kuasar.core.config import Engine
from kuasar.workers.pod import PodSpec, huge_pages_of, wanted_size

MIB = 1 << 20
SETTINGS = Engine(kind="qemu", memory_mib=128, max_memory_mib=1024, max_vcpus=4)
BASE = Size(1, 128 * MIB)


@pytest.mark.parametrize(
    ("vcpus", "memory", "size"),
    [
        (0, 0, BASE),
        (1, 64 * MIB, BASE),
        (2, 129 * MIB, Size(2, 128 * MIB + BLOCK_BYTES)),
        (3, 384 * MIB, Size(3, 384 * MIB)),
        (16, 64 * 1024 * MIB, Size(4, 1024 * MIB)),
    ],
)
def test_sizes(vcpus: int, memory: int, size: Size) -> None:
    assert size_for(vcpus, memory, BASE, SETTINGS) == size


def test_huge_pages_of_a_container_are_those_with_a_limit() -> None:
    limits = [
        {"pageSize": "2MB", "limit": 4 * MIB},
        {"pageSize": "1GB", "limit": 0},
        {"pageSize": "64KB", "limit": 2**63},
    ]
    assert huge_pages_of({"hugepageLimits": limits}) == 4 * MIB
    assert huge_pages_of({}) == 0


def test_a_machine_never_shrinks() -> None:
    large = Size(4, 1024 * MIB)
    assert size_for(1, 128 * MIB, large, SETTINGS) == large


@pytest.mark.parametrize(
    ("resources", "overhead", "wanted"),
    [
        ({}, {}, (0, 0)),
        ({}, {"memory_limit_in_bytes": 64 * MIB, "cpu_quota": 25000, "cpu_period": 100000}, (0, 0)),
        ({"cpu_quota": 150000, "cpu_period": 100000}, {}, (2, 0)),
        ({"cpu_quota": 100000}, {"cpu_quota": 25000, "cpu_period": 100000}, (2, 0)),
        ({"memory_limit_in_bytes": 256 * MIB}, {"memory_limit_in_bytes": 64 * MIB}, (0, 320 * MIB)),
        ({"cpu_quota": -1, "memory_limit_in_bytes": 0}, {}, (0, 0)),
    ],
)
def test_a_pods_limits_and_overhead(
    resources: dict[str, int], overhead: dict[str, int], wanted: tuple[int, int]
) -> None:
    assert wanted_size(PodSpec(resources=resources, overhead=overhead)) == wanted


@pytest.mark.parametrize("limit", [1, 100, 128, 200, 256, 300, 511, 512, 513, 700])
@pytest.mark.parametrize("overhead", [256, 300, 1024])
def test_a_machine_and_its_vmm_stay_below_what_the_kubelet_allows(limit: int, overhead: int) -> None:
    """With the overhead that we ship: the containers fit beside the guest's kernel, and the VMM beside the guest."""
    pod = PodSpec(resources={"memory_limit_in_bytes": limit * MIB}, overhead={"memory_limit_in_bytes": overhead * MIB})
    machine = size_for(*wanted_size(pod), BASE, SETTINGS).memory_bytes
    assert limit * MIB + GUEST_BYTES <= machine <= (limit + overhead) * MIB - VMM_BYTES


@pytest.mark.parametrize("limit", [256, 300, 512])
@pytest.mark.parametrize("overhead", [0, 1, 64, 100, 160])
def test_the_containers_fit_however_small_the_overhead_is(limit: int, overhead: int) -> None:
    pod = PodSpec(resources={"memory_limit_in_bytes": limit * MIB}, overhead={"memory_limit_in_bytes": overhead * MIB})
    assert size_for(*wanted_size(pod), BASE, SETTINGS).memory_bytes >= limit * MIB + GUEST_BYTES
