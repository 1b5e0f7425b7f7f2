"""Containers from create to delete: states, exit codes, signals, failures and what is left after them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from kuasar.core.errors import AlreadyExists, BackendFailed, DeadlineExceeded, NotFound, WrongState
from tests.integration.agent.harness import Agent


async def status_of(agent: Agent, name: str) -> str:
    return str((await agent.call("task.state", id=name))["status"])


def test_a_container_from_create_to_delete(agent: Agent) -> None:
    async def scenario() -> None:
        stdout = agent.fifo("out")
        reader = agent.reader(stdout)
        created = await agent.create("c", ["sh", "-c", "echo hello; exit 3"], stdout=stdout)
        assert await status_of(agent, "c") == "created"
        assert Path(f"/proc/{created['pid']}/cgroup").read_text().count(f"{agent.name}-c") > 0  # a pid of the host
        started = await agent.call("task.start", id="c")
        assert started == created
        assert await agent.read(reader) == b"hello\n"
        ended = await agent.call("task.wait", id="c")
        assert ended["exit_status"] == 3
        state = await agent.call("task.state", id="c")
        assert (state["status"], state["exit_status"], state["stdout"]) == ("stopped", 3, stdout)
        assert state["bundle"] == "/bundle"
        deleted = await agent.call("task.delete", id="c")
        assert deleted == {"pid": created["pid"], **ended}
        with pytest.raises(NotFound, match="c does not exist"):
            await agent.call("task.state", id="c")
        with pytest.raises(NotFound):
            await agent.call("task.delete", id="c")

    agent.run(scenario())
    assert os.listdir(agent.directory / "containers") == []
    assert os.listdir(agent.directory / "oci") == []


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 255", 255),
        ("kill -9 $$", 0),  # its own first process: the kernel shields it from its own SIGKILL
    ],
)
def test_exit_codes(agent: Agent, script: str, status: int) -> None:
    async def scenario() -> None:
        await agent.run_container("c", ["sh", "-c", script])
        assert (await agent.finish("c"))["exit_status"] == status

    agent.run(scenario())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1])
def test_a_death_by_signal_is_128_and_its_number(agent: Agent, number: signal.Signals) -> None:
    async def scenario() -> None:
        # In the pod's pid namespace (no namespace of its own), so that signals are not held back from a first process.
        shared = [{"type": "mount"}, {"type": "pid", "path": f"/proc/{agent.pid}/ns/pid"}]
        await agent.run_container("c", ["sleep", "100"], linux={"namespaces": shared})
        await agent.call("task.kill", id="c", signal=int(number))
        assert (await agent.finish("c"))["exit_status"] == 128 + number
        assert not await events_of(agent, "task.oom")

    agent.run(scenario())


async def events_of(agent: Agent, topic: str) -> list[dict[str, Any]]:
    """All unacknowledged events of a topic, as a new worker is told them."""
    found: list[dict[str, Any]] = []
    client = await agent.connect()
    client.on_event = lambda _, name, body: found.append(body) if name == topic else None
    await agent.call("info")
    return found


def test_the_exit_is_told_once_with_its_facts(agent: Agent) -> None:
    async def scenario() -> None:
        created = await agent.run_container("c", ["sh", "-c", "exit 7"])
        ended = await agent.call("task.wait", id="c")
        (event,) = await events_of(agent, "task.exit")
        assert event.pop("id")
        assert event == {"container_id": "c", "exec_id": "", "pid": created["pid"], **ended}

    agent.run(scenario())


def test_kill_and_delete_where_they_are_not_legal(agent: Agent) -> None:
    async def scenario() -> None:
        await agent.run_container("c", ["sleep", "100"])
        with pytest.raises(WrongState, match="running") as raised:
            await agent.call("task.delete", id="c")
        assert raised.value.seen == "running"
        with pytest.raises(WrongState):
            await agent.call("task.start", id="c")
        with pytest.raises(AlreadyExists):
            await agent.create("c", ["true"])
        await agent.call("task.kill", id="c", signal=9)
        await agent.call("task.wait", id="c")
        with pytest.raises(NotFound, match="has ended"):
            await agent.call("task.kill", id="c", signal=9)
        with pytest.raises(NotFound):
            await agent.call("task.kill", id="nobody", signal=9)

    agent.run(scenario())


def test_a_created_container_can_be_deleted_at_once(agent: Agent) -> None:
    async def scenario() -> None:
        await agent.create("c", ["sleep", "100"])
        assert (await agent.call("task.delete", id="c"))["exit_status"] == 137
        await agent.run_container("c", ["true"])  # the name is free again
        await agent.finish("c")

    agent.run(scenario())


def test_a_program_that_does_not_exist_is_said_in_the_runtimes_words(agent: Agent) -> None:
    async def scenario() -> None:
        with pytest.raises(BackendFailed, match=r"^runc create failed.*nonsense.*no such file"):
            await agent.run_container("c", ["/nonsense"])
        with pytest.raises(NotFound):
            await agent.call("task.state", id="c")
        assert os.listdir(agent.directory / "containers") == []
        await agent.run_container("c", ["true"])
        await agent.finish("c")

    agent.run(scenario())


def test_a_wait_ends_at_its_deadline_and_the_container_goes_on(agent: Agent) -> None:
    async def scenario() -> None:
        await agent.run_container("c", ["sleep", "100"])
        client = agent.client
        assert client is not None
        with pytest.raises(DeadlineExceeded):
            await client.call("task.wait", {"id": "c"}, deadline=0.0)
        assert await status_of(agent, "c") == "running"

    agent.run(scenario())


def test_an_init_takes_its_whole_container_along_in_a_shared_pid_namespace(agent: Agent) -> None:
    async def scenario() -> None:
        shared = [{"type": "mount"}, {"type": "pid", "path": f"/proc/{agent.pid}/ns/pid"}]
        stdout = agent.fifo("out")
        reader = agent.reader(stdout)
        script = "sleep 100 & sleep 200 & echo up; read x < /dev/pts/ptmx; sleep 300"
        await agent.run_container("c", ["sh", "-c", script], linux={"namespaces": shared}, stdout=stdout)
        await agent.read(reader, b"up\n")
        pids = [pid for pid, _ in (await agent.call("task.pids", id="c"))["pids"]]
        assert len(pids) >= 3
        await agent.call("task.kill", id="c", signal=9)
        await agent.call("task.wait", id="c")
        assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
        assert (await agent.call("task.pids", id="c"))["pids"] == []

    agent.run(scenario())


def test_kill_all_reaches_every_process(agent: Agent) -> None:
    async def scenario() -> None:
        stdout = agent.fifo("out")
        reader = agent.reader(stdout)
        trap = "trap 'echo got; exit 0' TERM; echo up; while :; do sleep 0.01; done"
        await agent.run_container("c", ["sh", "-c", f'sh -c "{trap}" & {trap}'], stdout=stdout)
        await agent.read(reader, b"up\nup\n")
        await agent.call("task.kill", id="c", signal=15, all=True)
        assert (await agent.read(reader)).count(b"got") >= 1
        assert (await agent.finish("c"))["exit_status"] == 0
        await agent.run_container("d", ["sh", "-c", "sleep 100 & sleep 100"])
        await agent.call("task.kill", id="d", signal=9, all=True)
        assert (await agent.finish("d"))["exit_status"] == 137

    agent.run(scenario())
