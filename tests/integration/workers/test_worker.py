"""A worker's whole life with the real zygote, agent and runc; what happens when it dies, and when its machine does."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from kuasar.core.errors import (
    AlreadyExists,
    BackendFailed,
    InvalidArgument,
    KuasarError,
    NotFound,
    Unimplemented,
    WrongState,
)
from kuasar.core.process import start_time
from tests import needs
from tests.integration.workers.rig import Rig, rig, run

pytestmark = needs.ROOT


def cgroup_paths(name: str) -> list[str]:
    """Every cgroup of that name below the rig's, in any hierarchy."""
    below = f"kuasar-test-{os.getpid()}/{name}"
    return [str(path) for pattern in (below, f"*/{below}") for path in Path("/sys/fs/cgroup").glob(pattern)]


async def ready(rig: Rig) -> int:
    """A started sandbox; gives the agent's pid."""
    await rig.start_zygote()
    await rig.start_worker()
    await rig.create()
    return int((await rig.call("sandbox.start"))["pid"])


def test_a_whole_life() -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.start_zygote()
            worker, hello = await r.start_worker()
            assert (hello.state, hello.generation, hello.namespace) == ("new", 1, "")
            await r.create()
            started = await r.call("sandbox.start")
            assert started["pid"] > 0
            assert {name for name, _ in started["phases"]} == {"files", "cgroup", "launch", "agent", "setup"}
            status = await r.call("sandbox.status", key="", verbose=True)
            assert (status["state"], status["pid"]) == ("ready", started["pid"])
            assert "exec" in status["info"]["capabilities"]
            created = await r.create_container("c1", "exit 7")
            waiting = asyncio.create_task(r.call("task.wait", key="", id="c1", exec_id=""))
            await r.call("task.start", id="c1", exec_id="")
            assert (await waiting)["exit_status"] == 7
            topic, event = await asyncio.wait_for(r.events.get(), 10)
            assert (topic, event["container_id"], event["exit_status"]) == ("task.exit", "c1", 7)
            deleted = await r.call("task.delete", id="c1", exec_id="")
            assert (deleted["exit_status"], deleted["pid"]) == (7, created["pid"])
            assert (await r.call("sandbox.stop", timeout=5.0))["stage"] == "asked"
            assert (await r.call("sandbox.wait", key=""))["exit_status"] == 0
            assert (await r.call("sandbox.status", key="", verbose=False))["state"] == "stopped"
            await r.call("sandbox.shutdown")
            await r.until(lambda: worker.poll() is not None)
            assert worker.returncode == 0
            assert not r.directory.exists()
            assert start_time(started["pid"]) is None
            assert cgroup_paths("kuasar-pod1") == []

    run(scenario())


def test_a_killed_worker_is_replaced_and_adopts() -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.start_zygote()
            worker, _ = await r.start_worker()
            await r.create()
            pid = (await r.call("sandbox.start"))["pid"]
            await r.create_container("c1", "trap 'exit 9' TERM; while :; do sleep 0.05; done")
            await r.call("task.start", id="c1", exec_id="")
            waiting = asyncio.create_task(r.call("task.wait", key="", id="c1", exec_id=""))
            await asyncio.sleep(0)
            worker.kill()
            worker.wait()
            _, hello = await r.start_worker()
            assert (hello.state, hello.generation, hello.containers) == ("ready", 2, ["c1"])
            assert (await r.call("sandbox.status", key="", verbose=False))["pid"] == pid
            await r.call("task.kill", id="c1", exec_id="", signal=signal.SIGTERM, all=False)
            assert (await waiting)["exit_status"] == 9
            await r.call("sandbox.shutdown")

    run(scenario())


def test_a_repeated_key_does_nothing_twice() -> None:
    async def scenario() -> None:
        async with rig() as r:
            await ready(r)
            await r.create_container("c1", "exit 0")
            calls = [r.call("task.start", key="same", id="c1", exec_id=exec_id) for exec_id in ("", "", "other")]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(answers[0], dict)
            assert answers[0] == answers[1]
            assert isinstance(answers[2], InvalidArgument)
            await r.call("sandbox.shutdown")

    run(scenario())


def test_the_death_of_the_agent_is_the_end_of_the_sandbox() -> None:
    async def scenario() -> None:
        async with rig() as r:
            pid = await ready(r)
            container = await r.create_container("c1", "sleep 100")
            await r.call("task.start", id="c1", exec_id="")
            waits = [
                asyncio.create_task(r.call("task.wait", key="", id="c1", exec_id="")),
                asyncio.create_task(r.call("sandbox.wait", key="")),
            ]
            await asyncio.sleep(0)
            os.kill(pid, signal.SIGKILL)
            task, sandbox = await asyncio.gather(*waits)
            assert task["exit_status"] == 137
            assert (sandbox["exit_status"], sandbox["reason"]) == (255, "the agent died")
            topics = sorted([(await asyncio.wait_for(r.events.get(), 10))[0] for _ in range(2)])
            assert topics == ["sandbox.exit", "task.exit"]
            await r.until(lambda: start_time(container["pid"]) is None)
            await r.until(lambda: not cgroup_paths("kuasar-pod1"))
            assert (await r.call("task.state", key="", id="c1", exec_id=""))["status"] == "stopped"
            with pytest.raises(WrongState, match="has ended"):
                await r.call("task.pause", id="c1")
            assert (await r.call("task.delete", id="c1", exec_id=""))["exit_status"] == 137
            with pytest.raises(NotFound):
                await r.call("task.state", key="", id="c1", exec_id="")
            await r.call("sandbox.shutdown")

    run(scenario())


def test_without_a_zygote_the_agent_is_executed() -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.start_worker()
            await r.create()
            assert (await r.call("sandbox.start"))["pid"] > 0
            await r.call("sandbox.shutdown")

    run(scenario())


def test_requests_out_of_order() -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.start_worker()
            for op, body in (("sandbox.start", {}), ("sandbox.metrics", {}), ("task.state", {"id": "c1"})):
                with pytest.raises((WrongState, NotFound)):
                    await r.call(op, **body)
            with pytest.raises(NotFound, match="nothing has been created"):
                await r.call("sandbox.status", verbose=False)
            await r.create()
            with pytest.raises(AlreadyExists):
                await r.create()
            with pytest.raises(Unimplemented, match=r"sandbox\.fly"):
                await r.call("sandbox.fly")
            with pytest.raises(InvalidArgument, match="malformed body"):
                await r.call("sandbox.stop")
            await r.call("sandbox.shutdown")

    run(scenario())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "nope"}, "no engine 'nope' is configured"),
        ({"config": {"name": 3}}, "config.name"),
        ({"netns": "/run/netns/none"}, "does not exist"),
        ({"config": {}}, "no network namespace was given"),
    ],
)
def test_bad_creates_name_the_field_and_leave_nothing(changes: dict[str, Any], message: str) -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.start_worker()
            with pytest.raises(InvalidArgument, match=message):
                await r.create(**changes)
            await r.create()
            await r.call("sandbox.shutdown")

    run(scenario())


def test_a_failed_start_is_undone_and_can_be_repeated() -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.start_zygote()
            await r.start_worker()
            pod = {"name": "p", "host_network": True, "sysctls": {"kernel.panic": "1"}}
            await r.create(config=pod)
            with pytest.raises(KuasarError, match=r"kernel\.panic"):
                await r.call("sandbox.start")
            assert (await r.call("sandbox.status", key="", verbose=False))["state"] == "created"
            assert r.record()["holdings"] == []
            assert cgroup_paths("kuasar-pod1") == []
            await r.call("sandbox.update", config=pod | {"labels": {"a": "b"}}, fields=[])
            with pytest.raises(KuasarError, match=r"kernel\.panic"):
                await r.call("sandbox.start")
            await r.call("sandbox.shutdown")

    run(scenario())


def test_a_missing_runtime_binary_is_named() -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.start_zygote()
            await r.start_worker()
            await r.create(engine="broken")
            await r.call("sandbox.start")
            with pytest.raises(BackendFailed, match="/nonexistent/runc"):
                await r.create_container("c1", "true")
            with pytest.raises(NotFound):
                await r.call("task.state", key="", id="c1", exec_id="")
            await r.call("sandbox.shutdown")

    run(scenario())


def test_a_damaged_record_is_set_aside() -> None:
    async def scenario() -> None:
        async with rig() as r:
            worker, _ = await r.start_worker()
            await r.create()
            worker.kill()
            worker.wait()
            (r.directory / "sandbox.msgpack").write_bytes(b"\xff rubbish")
            _, hello = await r.start_worker()
            assert hello.state == "new"
            assert (r.directory / "sandbox.msgpack.damaged").exists()
            await r.create()
            await r.call("sandbox.shutdown")

    run(scenario())
