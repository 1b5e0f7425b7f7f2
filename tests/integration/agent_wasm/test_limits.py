"""The container's cgroup: joined, limited, frozen, changed, gone at the end."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from kuasar.core.cgroup import current, exists, procs
from kuasar.core.errors import InvalidArgument, Unimplemented
from tests.integration.agent_wasm.conftest import TIMEOUT, Agent, Container, spec, write

pytestmark = pytest.mark.root
MIB = 1024 * 1024


@pytest.fixture
def cgroup() -> Iterator[str]:
    """A path nobody else uses; its parent is removed at the end."""
    parent = f"/kuasar-test-{uuid.uuid4().hex[:8]}"
    yield f"{parent}/c"
    assert not exists(f"{parent}/c")
    for directory in current().directories(parent):
        if os.path.isdir(directory):
            os.rmdir(directory)


def limited(cgroup: str, **resources: Any) -> dict[str, Any]:
    return {"cgroupsPath": cgroup, "resources": resources}


def setting(controller: str, cgroup: str, name: dict[int, str]) -> str:
    """The content of a file of the cgroup, named for each version."""
    with open(f"{current().path(controller, cgroup)}/{name[current().version]}") as file:
        return file.read().strip()


def finish(container: Container, code: int = 128 + signal.SIGKILL) -> None:
    os.kill(container.pid, signal.SIGKILL)
    assert container.wait() == code
    container.agent.call("delete", container.name)


def running(agent: Agent, rootfs: str, linux: dict[str, Any]) -> Container:
    container = agent.create(rootfs, spec("/spin.wasm", linux=linux))
    container.start()
    assert container.stdout.take() == b"spinning\n"
    return container


def ticks(pid: int) -> int:
    """Processor time used so far."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_every_limit_is_set_and_the_process_is_in_it(agent: Agent, rootfs: str, cgroup: str) -> None:
    resources = {"memory": {"limit": 64 * MIB}, "cpu": {"quota": 50000, "period": 100000, "shares": 512}}
    container = running(agent, rootfs, limited(cgroup, **resources, pids={"limit": 50}))
    assert procs(cgroup) == [container.pid]
    with open(f"/proc/{container.pid}/cgroup") as file:
        lines = file.read().splitlines()
    # the version 2 hierarchy of a hybrid host ("0::") has no controllers that count
    assert all(line.endswith(cgroup) for line in lines if current().version == 2 or not line.startswith("0::"))
    assert setting("memory", cgroup, {1: "memory.limit_in_bytes", 2: "memory.max"}) == str(64 * MIB)
    assert setting("pids", cgroup, {1: "pids.max", 2: "pids.max"}) == "50"
    assert setting("cpu", cgroup, {1: "cpu.cfs_quota_us", 2: "cpu.max"}).split()[0] == "50000"
    finish(container)
    assert not exists(cgroup)


def test_a_well_behaved_module_meets_its_own_limit_and_not_the_kernel_s(agent: Agent, rootfs: str, cgroup: str) -> None:
    container = agent.create(rootfs, spec("/grow.wasm", linux=limited(cgroup, memory={"limit": 32 * MIB})))
    code, _, err = container.run()
    assert (code, err.split(b"\n")[0]) == (134, b"refused")
    agent.call("delete", container.name)


def test_the_kernel_enforces_a_limit_that_was_lowered(agent: Agent, rootfs: str, cgroup: str) -> None:
    container = agent.create(rootfs, spec("/grow.wasm", linux=limited(cgroup, memory={"limit": 256 * MIB})))
    agent.call("update", container.name, {"memory": {"limit": 24 * MIB}})
    assert container.run()[0] == 128 + signal.SIGKILL
    agent.call("delete", container.name)


def test_pause_and_resume(agent: Agent, rootfs: str, cgroup: str) -> None:
    container = running(agent, rootfs, limited(cgroup))
    agent.call("pause", container.name)
    frozen = ticks(container.pid)
    end = time.monotonic() + 0.2
    while time.monotonic() < end:  # ten ticks of a running process
        assert ticks(container.pid) == frozen
    agent.call("resume", container.name)
    end = time.monotonic() + TIMEOUT
    while ticks(container.pid) == frozen:
        assert time.monotonic() < end
    finish(container)


def test_a_creation_that_fails_leaves_no_cgroup(agent: Agent, rootfs: str, cgroup: str) -> None:
    for args in ("/foreign.wasm", "/missing.wasm"):
        with pytest.raises(Exception, match="wasm"):
            agent.create(rootfs, spec(args, linux=limited(cgroup)))
        assert not exists(cgroup)


def test_the_smallest_allowed_number_of_threads_is_enough(agent: Agent, rootfs: str, cgroup: str) -> None:
    write(f"{rootfs}/etc/large", bytes(300_000))
    linux = limited(cgroup, pids={"limit": 8})
    container = agent.create(rootfs, spec("/read.wasm", "3", "etc/large", linux=linux))
    assert container.run() == (0, bytes(300_000), b"")
    agent.call("delete", container.name)
    with pytest.raises(InvalidArgument, match="needs 8 threads"):
        agent.create(rootfs, spec("/hello.wasm", linux=limited(cgroup, pids={"limit": 7})))


def test_deleting_a_container_that_waits_removes_its_cgroup(agent: Agent, rootfs: str, cgroup: str) -> None:
    container = agent.create(rootfs, spec("/spin.wasm", linux=limited(cgroup)))
    assert procs(cgroup) == [container.pid]
    agent.call("delete", container.name)
    assert container.wait() in (1, 128 + signal.SIGKILL)


def test_without_a_cgroup_there_is_nothing_to_change(agent: Agent, rootfs: str) -> None:
    container = agent.create(rootfs, spec("/spin.wasm"))
    for verb, arguments in (("pause", ()), ("resume", ()), ("update", ({},))):
        with pytest.raises(Unimplemented, match="has no cgroup"):
            agent.call(verb, container.name, *arguments)
    agent.call("delete", container.name)
    assert container.wait() == 1
