"""Every step of a start fails once, and every window between two of them sees the worker die: nothing stays, the state
is honest, and the next attempt works."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from kuasar.core.errors import KuasarError, WrongState
from tests import needs
from tests.integration.workers.rig import CHECKOUT, Rig, rig, run

pytestmark = needs.ROOT

NEEDS_RUNSC = pytest.mark.skipif(
    not (CHECKOUT / ".kuasar/runsc/usr/bin/runsc").exists(), reason="runsc is not here: make install"
)
STEPS = (
    "start.files",
    "record.cgroup",
    "start.cgroup",
    "record.socket",
    "process.agent.forked",
    "process.agent.recorded",
    "start.launch",
    "start.agent",
    "start.setup",
)
"""In the order of a start."""


async def usable(r: Rig) -> None:
    """A started sandbox runs something, and goes without a trace."""
    status = await r.call("sandbox.status", key="", verbose=False)
    assert status["state"] == "ready"
    assert status["pid"] in r.machine_processes()
    await r.call("sandbox.shutdown")
    await r.nothing_held()
    assert not r.directory.exists()


@pytest.mark.parametrize("engine", ["runc", "wasmtime", pytest.param("gvisor", marks=NEEDS_RUNSC)])
@pytest.mark.parametrize("step", STEPS)
def test_a_step_fails(step: str, engine: str) -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.start_zygote()
            await r.start_worker()
            await r.create(engine=engine)
            r.arm(step, "error times=1")
            with pytest.raises(KuasarError, match=f"failpoint {step}"):
                await r.call("sandbox.start")
            assert r.hits(step) == 1
            await r.nothing_held()
            assert (await r.call("sandbox.status", key="", verbose=False))["state"] == "created"
            await r.call("sandbox.start")
            await usable(r)

    run(scenario())


@pytest.mark.parametrize("step", ["record.written", *STEPS])
def test_the_worker_dies_at_a_step(step: str) -> None:
    """The request is asked again of the successor, which first frees what its predecessor had begun."""

    async def scenario() -> None:
        async with rig() as r:
            await r.start_zygote()
            worker, _ = await r.start_worker()
            await r.create()
            r.arm(step, "kill times=1")
            starting = asyncio.create_task(r.call("sandbox.start"))
            await r.until(lambda: worker.poll() is not None)
            assert r.hits(step) == 1
            _, hello = await r.start_worker()
            assert hello.state == "created"
            assert (await starting)["pid"] > 0
            await usable(r)

    run(scenario())


@pytest.mark.parametrize("step", ["freed.cgroup", "freed.socket", "worker.removed"])
def test_the_worker_dies_while_it_frees(step: str) -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.start_zygote()
            worker, _ = await r.start_worker()
            await r.create()
            await r.call("sandbox.start")
            r.arm(step, "kill times=1")
            ending = asyncio.create_task(r.call("sandbox.shutdown"))
            await r.until(lambda: worker.poll() is not None)
            await r.start_worker()
            await ending
            await r.nothing_held()
            assert not r.directory.exists()

    run(scenario())


@pytest.mark.parametrize("step", ["task.recorded", "task.lent", "task.made", "agent.request", "agent.mounted"])
def test_a_container_is_not_made(step: str) -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.start_zygote()
            await r.start_worker()
            await r.create()
            await r.call("sandbox.start")
            r.arm(step, "error times=1")
            with pytest.raises(KuasarError, match=f"failpoint {step}"):
                await r.create_container("c1", "exit 3")
            assert r.record()["containers"] == {}
            assert r.cgroups("c1") == []
            assert not (r.directory / "containers" / "c1").exists()
            await r.create_container("c2", "exit 3")
            await r.call("task.start", id="c2", exec_id="")
            assert (await r.call("task.wait", key="", id="c2", exec_id=""))["exit_status"] == 3
            await r.call("task.delete", id="c2", exec_id="")
            await usable(r)

    run(scenario())


@pytest.mark.parametrize("step", ["task.recorded", "task.lent", "task.made", "worker.request", "worker.answer"])
def test_the_worker_dies_while_a_container_is_made(step: str) -> None:
    """Once, and only once, there is a container afterwards."""

    async def scenario() -> None:
        async with rig() as r:
            await r.start_zygote()
            worker, _ = await r.start_worker()
            await r.create()
            await r.call("sandbox.start")
            r.arm(step, "kill times=1")
            creating = asyncio.create_task(r.create_container("c1", "exit 3"))
            await r.until(lambda: worker.poll() is not None)
            await r.start_worker()
            assert (await creating)["pid"] > 0
            await r.call("task.start", id="c1", exec_id="")
            assert (await r.call("task.wait", key="", id="c1", exec_id=""))["exit_status"] == 3
            await usable(r)

    run(scenario())


@pytest.mark.parametrize("step", ["zygote.request", "zygote.forked"])
@pytest.mark.parametrize("action", ["kill times=1", "error times=1"])
def test_the_zygote_fails(step: str, action: str) -> None:
    """A start either succeeds the slow way or fails without a trace."""

    async def scenario() -> None:
        async with rig() as r:
            await r.start_zygote()
            await r.start_worker()
            await r.create()
            r.arm(step, action)
            try:
                await r.call("sandbox.start")
            except KuasarError:
                await r.nothing_held()
                await r.call("sandbox.start")
            assert r.hits(step) == 1
            await usable(r)

    run(scenario())


@pytest.mark.parametrize("op", ["sandbox.create", "sandbox.start", "sandbox.stop", "sandbox.shutdown"])
def test_the_worker_dies_before_it_answers(op: str) -> None:
    """The successor answers: what was done is done once, and is no error when the request comes again."""

    async def scenario() -> None:
        async with rig() as r:
            await r.start_zygote()
            worker, _ = await r.start_worker()
            steps: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
                "sandbox.create": r.create,
                "sandbox.start": lambda: r.call("sandbox.start"),
                "sandbox.stop": lambda: r.call("sandbox.stop", timeout=5.0),
                "sandbox.shutdown": lambda: r.call("sandbox.shutdown"),
            }
            for name, step in steps.items():
                if name == op:
                    r.arm("worker.answer", "kill times=1")
                    asking = asyncio.create_task(step())
                    await r.until(lambda: worker.poll() is not None)
                    await r.start_worker()
                    await asking
                    assert r.hits("worker.answer") == 2
                else:
                    await step()
            await r.nothing_held()
            assert not r.directory.exists()

    run(scenario())


def test_an_acknowledged_answer_is_not_given_again() -> None:
    """Only who has not heard the answer may repeat a request; the same words later are another request."""

    async def scenario() -> None:
        async with rig() as r:
            await r.start_zygote()
            await r.start_worker()
            await r.create()
            await r.call("sandbox.start", key="start")
            await r.until(lambda: r.record()["keys"] == {}, seconds=30.0)
            with pytest.raises(WrongState):
                await r.call("sandbox.start", key="start")
            await usable(r)

    run(scenario())
