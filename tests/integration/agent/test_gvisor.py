"""The gVisor driver with the real runsc: one kernel for the containers of an agent, and what becomes of it."""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kuasar.core import cgroup
from kuasar.core.errors import BackendFailed, InvalidArgument, Unavailable, Unimplemented, WrongState
from scripts.layout import CHECKOUT
from tests.integration.agent.harness import Agent, running_agent

RUNSC = f"{CHECKOUT}/.kuasar/runsc/usr/bin/runsc"
MIB = 1024 * 1024


@contextmanager
def gvisor(base: Path, **options: str) -> Iterator[Agent]:
    settings = {"binary": RUNSC, "cache_dir": f"{base}/cache", **options}
    with running_agent(base, f"g{uuid.uuid4().hex[:8]}", driver="gvisor", options=settings) as agent:
        yield agent
        print(agent.log.read_text())


@pytest.fixture
def pod(base: Path) -> Iterator[Agent]:
    """An agent whose containers are gVisor's."""
    with gvisor(base) as agent:
        yield agent


def sentries(agent: Agent) -> list[int]:
    """The processes of the agent's sandbox that are a kernel."""
    return [pid for pid in cgroup.procs(f"{agent.cgroup}/gvisor") if "runsc-sandbox" in command(pid)]


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_two_containers_in_one_kernel(pod: Agent) -> None:
    async def scenario() -> None:
        out = pod.fifo("out")
        reader = pod.reader(out)
        one = await pod.run_container("one", ["sh", "-c", "echo hello; exit 3"], stdout=out)
        assert await pod.read(reader) == b"hello\n"
        two = await pod.run_container("two", ["sleep", "1000"])
        assert one["pid"] == two["pid"]
        assert sentries(pod) == [one["pid"]]
        assert (await pod.finish("one"))["exit_status"] == 3
        await pod.start_exec("two", "e", ["sh", "-c", "exit 7"])
        assert (await pod.call("task.wait", id="two", exec_id="e"))["exit_status"] == 7
        await pod.start_exec("two", "f", ["sleep", "1000"])
        await pod.call("task.kill", id="two", exec_id="f", signal=signal.SIGTERM)
        assert (await pod.call("task.wait", id="two", exec_id="f"))["exit_status"] == 143
        await pod.call("task.kill", id="two", signal=signal.SIGKILL)
        assert (await pod.finish("two"))["exit_status"] == 137

    pod.run(scenario())


def test_the_limits_of_the_kernel_are_those_of_its_containers_together(pod: Agent) -> None:
    def limit() -> int:
        stats = cgroup.stats(f"{pod.cgroup}/gvisor")
        memory = stats["memory"]
        return int(memory["usage"]["limit"] if stats["version"] == 1 else memory["usage_limit"])

    def bounded(size: int) -> dict[str, Any]:
        return {"resources": {"memory": {"limit": size}}}

    async def scenario() -> None:
        await pod.run_container("one", ["sleep", "1000"], linux=bounded(100 * MIB))
        assert limit() == 164 * MIB
        await pod.create("two", ["sleep", "1000"], linux=bounded(50 * MIB))
        assert limit() == 214 * MIB
        await pod.call("task.update", id="two", resources={"memory": {"limit": 70 * MIB}})
        assert limit() == 234 * MIB
        await pod.call("task.delete", id="two")
        assert limit() == 164 * MIB

    pod.run(scenario())


def test_a_container_alone_can_be_paused(pod: Agent) -> None:
    async def scenario() -> None:
        await pod.run_container("one", ["sleep", "1000"])
        await pod.call("task.pause", id="one")
        with pytest.raises(WrongState, match="the pod's kernel is paused with one"):
            await pod.create("two", ["true"])
        await pod.call("task.resume", id="one")
        await pod.run_container("two", ["sleep", "1000"])
        with pytest.raises(Unimplemented, match="this pod has 1 beside one"):
            await pod.call("task.pause", id="one")
        assert (await pod.call("task.state", id="one"))["status"] == "running"

    pod.run(scenario())


def test_a_paused_container_can_be_killed(pod: Agent) -> None:
    async def scenario() -> None:
        await pod.run_container("one", ["sleep", "1000"])
        await pod.call("task.pause", id="one")
        await pod.call("task.kill", id="one", signal=signal.SIGKILL)
        assert (await pod.finish("one"))["exit_status"] == 137

    pod.run(scenario())


def test_figures_are_of_the_container(pod: Agent) -> None:
    async def scenario() -> None:
        await pod.run_container("idle", ["sleep", "1000"])
        busy = await pod.run_container("busy", ["sh", "-c", "while :; do :; done"])
        used = {"idle": 0, "busy": 0}
        while used["busy"] < 300_000_000:
            for name in used:
                stats = (await pod.call("task.stats", id=name))["stats"]
                cpu = stats["cpu"]
                used[name] = cpu["usage"]["total"] if stats["version"] == 1 else cpu["usage_usec"] * 1000
        assert used["idle"] < used["busy"]
        assert (await pod.call("task.pids", id="busy"))["pids"] == [[busy["pid"], ""]]

    pod.run(scenario())


def test_parameters_of_the_kernel_are_refused(pod: Agent) -> None:
    async def scenario() -> None:
        usual = {"net.ipv4.ping_group_range": "0 1"}
        with pytest.raises(Unimplemented, match="sysctls: a gVisor pod"):
            await pod.call("setup", sysctls={**usual, "kernel.shm_rmid_forced": "1"})

    pod.run(scenario())


def test_the_death_of_the_kernel_is_the_end_of_all(pod: Agent) -> None:
    async def scenario() -> None:
        created = await pod.run_container("one", ["sleep", "1000"])
        await pod.run_container("two", ["sleep", "1000"])
        os.kill(created["pid"], signal.SIGKILL)
        with pytest.raises(Unavailable):  # the agent ends when it has told the ends
            while True:
                assert (await pod.call("task.wait", id="two"))["exit_status"] == 137
        await pod.loop.wait_readable(pod.pidfd)

    pod.run(scenario())
    assert "the pod's kernel is dead" in pod.log.read_text()


def test_a_platform_can_be_chosen_and_the_one_that_works_is_remembered(base: Path) -> None:
    record = base / "cache" / "platform.json"
    with gvisor(base) as agent:
        agent.run(agent.run_container("c", ["true"]))
        assert json.loads(record.read_text())["platform"] in ("systrap", "ptrace")
    record.unlink()
    other = base / "other"
    other.mkdir()
    with gvisor(other, platform="ptrace") as agent:
        agent.run(agent.run_container("c", ["true"]))
        assert any("--platform=ptrace" in command(pid) for pid in sentries(agent))
    assert not record.exists()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("/no/such/runsc", "gVisor needs the program /no/such/runsc"),
        ("/bin/false", "false create: exited with 1"),
    ],
)
def test_a_program_that_does_not_work_is_named(base: Path, program: str, words: str) -> None:
    with gvisor(base, binary=program) as agent, pytest.raises(BackendFailed, match=words):
        agent.run(agent.create("c", ["true"]))


def test_a_program_that_cannot_be_started_leaves_the_pod_usable(pod: Agent) -> None:
    async def scenario() -> None:
        await pod.create("bad", ["/no/such/program"])
        with pytest.raises(BackendFailed, match="/no/such/program"):
            await pod.call("task.start", id="bad")
        await pod.call("task.delete", id="bad")
        await pod.run_container("good", ["true"])
        assert (await pod.finish("good"))["exit_status"] == 0

    pod.run(scenario())


def test_an_unknown_platform_is_named() -> None:
    from kuasar.agent.drivers.base import Context
    from kuasar.agent.drivers.registry import make_driver
    from kuasar.core.aio import Loop
    from kuasar.core.spawn import Children

    loop = Loop()
    children = Children(loop)
    try:
        with pytest.raises(InvalidArgument, match=r"options\.platform: 'kvm' is none of systrap, ptrace"):
            make_driver("gvisor", Context(loop, children, "/x"), {"cache_dir": "/x", "platform": "kvm"})
    finally:
        children.close()
        loop.close()
