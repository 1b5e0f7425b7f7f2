"""A guest at rest as the template of others, which become machines of their own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.guest.conftest import Built, needs_qemu
from tests.integration.guest.containers import container, run_to_end
from tests.integration.guest.machine import copy_sparsely, pages, start_machine

pytestmark = needs_qemu

MIB = 1 << 20
NEVER_TEMPLATE_MIB = 60
"""Half of it is the kernel; what is measured on a quiet machine is in docs/guest-image.md."""


@dataclass(frozen=True)
class Template:
    """A stopped guest."""

    memory: Path
    state: Path
    instance: str


@pytest.fixture(scope="module")
def template(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Template]:
    directory = tmp_path_factory.mktemp("template")
    with start_machine(built.image, built.directory, built.root_disk) as machine:
        with machine.connect() as agent:
            free = agent.call("guest.rest")["free_bytes"]
            assert free >= 60 * MIB
            instance = agent.hello.instance
        machine.qmp.migrate(directory / "state")
        copy_sparsely(machine.memory, directory / "memory")
    yield Template(directory / "memory", directory / "state", instance)


def identity(name: str) -> dict[str, Any]:
    return {
        "time_ns": time.time_ns(),
        "entropy": os.urandom(64),
        "machine_id": os.urandom(16).hex(),
        "hostname": name,
    }


def test_little_of_a_rested_guests_memory_is_not_zero(template: Template) -> None:
    with open(template.memory, "rb") as file:
        used = sum(page.count(0) != len(page) for page in pages(file)) * 4096
    print(f"{used / MIB:.1f} MiB of the template are not zero")
    assert used <= NEVER_TEMPLATE_MIB * MIB


def test_clones_are_machines_of_their_own(built: Built, template: Template) -> None:
    proofs = []
    for name in ("one", "two"):
        with start_machine(
            built.image, built.directory, built.root_disk, incoming=True, memory=template.memory
        ) as machine:
            machine.qmp.take_over(template.state)
            with machine.connect() as agent:
                assert agent.hello.instance == template.instance
                wanted = identity(name)
                proof = agent.call("guest.identity", wanted)
                assert (proof["machine_id"], proof["hostname"]) == (wanted["machine_id"], name)
                assert 0 <= proof["time_ns"] - wanted["time_ns"] < 60 * 10**9
                proofs.append(proof)
            with machine.connect() as agent:
                assert agent.hello.instance == proof["instance"]
                assert abs(agent.call("guest.clock", {"time_ns": time.time_ns()})["offset_ns"]) < 60 * 10**9
                assert run_to_end(agent, container("in-a-clone", "raise SystemExit(3)")) == 3
                agent.call("shutdown", {"grace": 1})
            assert machine.wait() == 0
            assert "kuasar-guest: end: the agent exited with 0" in machine.console
    assert proofs[0]["boot_id"] != proofs[1]["boot_id"]
    assert len({template.instance, *(proof["instance"] for proof in proofs)}) == 3
