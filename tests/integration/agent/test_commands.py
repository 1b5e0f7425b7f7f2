"""Commands in the sandbox itself, asked of a real agent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from kuasar.agent import commands
from kuasar.agent.commands import Commands
from kuasar.agent.exchange import Exchange
from kuasar.agent.requests import Body
from kuasar.core import cgroup
from kuasar.core.aio import Loop
from kuasar.core.errors import InvalidArgument, NotFound, ResourceExhausted
from kuasar.core.spawn import Children
from tests.deadline import eventually
from tests.integration.agent.harness import CGROUPS, Agent


def command(name: str, *args: str, **options: Any) -> dict[str, Any]:
    return {"command": name, "args": list(args), "stdin": "", "stdout": "", "stderr": "", "cwd": "/", **options}


async def ended(agent: Agent, name: str) -> tuple[int, str]:
    """How it has ended; then it is deleted."""
    end = await agent.call("command.wait", command=name)
    await agent.call("command.delete", command=name)
    return end["exit_status"], end["reason"]


def processes(agent: Agent, name: str) -> list[int]:
    return cgroup.procs(f"{agent.cgroup}/{name}")


def test_it_is_in_the_pods_namespaces_and_in_a_cgroup_of_its_own(agent: Agent) -> None:
    async def scenario() -> None:
        output = agent.reader(path := agent.fifo("out"))
        script = "readlink /proc/self/ns/pid /proc/self/ns/mnt; grep :pids: /proc/self/cgroup; cat /proc/1/comm"
        await agent.call("command.start", **command("c1", "sh", "-c", script, stdout=path))
        said = (await agent.read(output)).decode().splitlines()
        assert said[:2] == [os.readlink(f"/proc/{agent.pid}/ns/{kind}") for kind in ("pid", "mnt")]
        assert said[-1] == "kuasar-agent" or said[-1].startswith("python")
        if cgroup.current().version == 1:
            assert said[2].endswith(f"{agent.cgroup}/c1")
        assert await ended(agent, "c1") == (0, "")
        assert not cgroup.exists(f"{agent.cgroup}/c1")

    agent.run(scenario())


def test_everything_it_has_started_ends_with_it(agent: Agent) -> None:
    async def scenario() -> None:
        output = agent.reader(path := agent.fifo("out"))
        script = "setsid sleep 1000 & (setsid sh -c 'sleep 1000; :' &); echo ready; read never"
        stdin = agent.fifo("in")
        await agent.call("command.start", **command("c1", "sh", "-c", script, stdout=path, stdin=stdin))
        await agent.read(output, b"ready")
        eventually(lambda: processes(agent, "c1"), "all have been started", until=lambda found: len(found) >= 4)
        await agent.call("command.close_io", command="c1")
        assert (await ended(agent, "c1"))[0] == 1  # read has seen the end
        assert processes(agent, "c1") == []

    agent.run(scenario())


def test_its_time_is_over(agent: Agent) -> None:
    async def scenario() -> None:
        await agent.call("command.start", **command("c1", "sh", "-c", "sleep 1000 & sleep 1000", seconds=0.2))
        assert await ended(agent, "c1") == (124, "timed out: it had not ended after 0.2 s")

    agent.run(scenario())


def test_starting_it_again_finds_it(agent: Agent) -> None:
    async def scenario() -> None:
        first = await agent.call("command.start", **command("c1", "sleep", "1000"))
        await agent.connect()  # a new worker
        assert await agent.call("command.start", **command("c1", "sleep", "1000")) == first
        await agent.call("command.kill", command="c1", signal=15)
        assert await ended(agent, "c1") == (143, "")

    agent.run(scenario())


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["no-such"], 127, "no-such: not found in "),
        (["/no/such"], 127, "/no/such: not found"),
        ([""], 127, ": not found"),
        (["/etc/passwd"], 126, "/etc/passwd: /etc/passwd is no executable file"),
        (["/etc"], 126, "/etc: /etc is no executable file"),
    ],
)
@pytest.mark.parametrize("terminal", [False, True])
def test_a_program_that_is_none(agent: Agent, args: list[str], status: int, words: str, terminal: bool) -> None:
    async def scenario() -> None:
        await agent.call("command.start", **command("c1", *args, terminal=terminal, stdout=agent.fifo("out")))
        found, reason = await ended(agent, "c1")
        assert found == status
        assert reason.startswith(words)

    agent.run(scenario())


def test_what_is_wrong_is_refused_and_leaves_nothing(agent: Agent) -> None:
    async def scenario() -> None:
        with pytest.raises(InvalidArgument, match="args: "):
            await agent.call("command.start", **command("c1"))
        with pytest.raises(InvalidArgument, match=r"stdout: .* is not a FIFO"):
            await agent.call("command.start", **command("c1", "true", stdout="/etc/passwd"))
        with pytest.raises(NotFound, match="command c1 does not run"):
            await agent.call("command.wait", command="c1")
        await agent.call("command.delete", command="c1")  # of what is gone succeeds
        assert not cgroup.exists(f"{agent.cgroup}/c1")
        for number in range(commands.MOST):
            await agent.call("command.start", **command(f"c{number}", "sleep", "1000"))
        with pytest.raises(ResourceExhausted, match="16 commands run"):
            await agent.call("command.start", **command("more", "true"))
        for number in range(commands.MOST):
            await agent.call("command.delete", command=f"c{number}")

    agent.run(scenario())


def test_one_that_no_new_worker_asks_for_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(commands, "_UNWANTED_SECONDS", 0.05)
    loop = Loop()
    children = Children(loop)
    made = Commands(loop, children, Exchange(loop), f"/{CGROUPS}/unwanted")
    operations = made.operations()

    async def scenario() -> None:
        for name in ("wanted", "unwanted"):
            await operations["command.start"](Body(command(name, "sleep", "1000")), None)
        made.worker_changed()

        async def wait() -> dict[str, Any]:
            return await operations["command.wait"](Body({"command": "wanted"}), None)

        waiting = loop.spawn(wait())
        while cgroup.exists(f"/{CGROUPS}/unwanted/unwanted"):
            await loop.sleep(0.01)
        assert not waiting.done
        await operations["command.delete"](Body({"command": "wanted"}), None)
        assert (await waiting)["exit_status"] != 0
        await cgroup.destroy(loop, f"/{CGROUPS}/unwanted")

    loop.run(scenario())
    children.close()
    loop.close()
