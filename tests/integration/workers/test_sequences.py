"""Random sequences of calls, kills and failpoints against a model: system and model agree after every step, and
whatever has happened, a shutdown comes to its end and leaves nothing.

Part of a supervisord is played here: whenever the worker dies, another one is started.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from kuasar.core.errors import AlreadyExists, KuasarError, NotFound, WrongState
from tests import needs
from tests.integration.workers.rig import Rig, rig
from tests.integration.workers.test_start_steps import STEPS

pytestmark = needs.ROOT

EXAMPLES = int(os.environ.get("EXAMPLES", "12"))
MOST_STEPS = 9
LONGEST_SECONDS = 60.0
WINDOWS = (*STEPS, "record.written", "freed.cgroup", "freed.socket", "task.recorded", "task.made")
"""Places to fail or to die at; to die only: ``worker.answer``."""


@dataclass
class Model:
    """What must be true."""

    state: str = "new"
    containers: dict[str, str] = field(default_factory=dict)
    """Container id -> created, running, stopped."""
    hung: bool = False
    """Whether the agent has been stopped in its tracks."""

    def machine_ended(self) -> None:
        self.state, self.hung = "stopped", False
        self.containers = dict.fromkeys(self.containers, "stopped")


class Pod:
    """One sandbox of an example, and its model."""

    def __init__(self, r: Rig) -> None:
        self.rig = r
        self.model = Model()
        self.worker: subprocess.Popen[bytes] | None = None
        self._watch: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        self.worker, _ = await self.rig.start_worker()
        self._watch = asyncio.create_task(self._replace())

    async def _replace(self) -> None:
        """A worker that dies gets a successor; one that exits with 0 says that the sandbox is gone."""
        assert self.worker is not None
        while self.worker.poll() != 0:
            if self.worker.returncode is not None:
                self.worker = self.rig.spawn_worker()  # which may die before it greets
            await asyncio.sleep(0.01)

    async def end(self) -> None:
        """Everything goes, from wherever it is."""
        self.disarm()
        await self.rig.call("sandbox.shutdown")
        assert self._watch is not None
        await asyncio.wait_for(self._watch, 20)
        await self.rig.nothing_held()
        assert not self.rig.directory.exists()

    async def expect(self, call: Awaitable[object], *refusals: type[KuasarError]) -> bool:
        """Whether the call succeeded. It may fail by an armed failpoint; else only with ``refusals``, and then must."""
        try:
            await call
        except KuasarError as exc:
            if "failpoint" in exc.message:
                return False
            assert isinstance(exc, refusals), f"{exc!r} with {self.model}"
            return False
        assert not refusals, f"it was not refused with {self.model}"
        return True

    # -- steps -----------------------------------------------------------------------------------------------------

    async def create(self) -> None:
        refusals = () if self.model.state == "new" else (AlreadyExists,)
        if await self.expect(self.rig.create(), *refusals):
            self.model.state = "created"

    async def start(self) -> None:
        refusals = {"created": (), "new": (NotFound, WrongState)}.get(self.model.state, (WrongState,))
        if await self.expect(self.rig.call("sandbox.start"), *refusals):
            self.model.state = "ready"
        elif self.model.state == "created" and (await self.status())["state"] == "stopped":
            self.model.machine_ended()  # it failed, and failed once more when it was undone

    async def stop(self) -> None:
        await self.expect(self.rig.call("sandbox.stop", timeout=0.3))
        if self.model.state == "ready":
            self.model.machine_ended()

    async def kill_worker(self) -> None:
        if self.model.hung:
            return
        assert self.worker is not None
        dying = self.worker
        dying.kill()
        await self.rig.until(lambda: self.worker is not dying)

    async def kill_agent(self) -> None:
        if self.model.state == "ready":
            os.kill((await self.status())["pid"], signal.SIGKILL)
            await self.rig.call("sandbox.wait", key="")
            self.model.machine_ended()

    async def hang_agent(self) -> None:
        if self.model.state == "ready":
            self.disarm()  # a successor would give it a minute to answer
            os.kill((await self.status())["pid"], signal.SIGSTOP)
            self.model.hung = True

    async def create_container(self) -> None:
        if self.model.hung:
            return
        name = f"c{len(self.model.containers)}"
        refusals = () if self.model.state == "ready" else (WrongState, NotFound)
        if await self.expect(self.rig.create_container(name, "sleep 1000"), *refusals):
            self.model.containers[name] = "created"

    async def start_container(self) -> None:
        for name in self._with_state("created"):
            if await self.expect(self.rig.call("task.start", id=name, exec_id="")):
                self.model.containers[name] = "running"

    async def kill_container(self) -> None:
        for name in self._with_state("created", "running"):
            if await self.expect(self.rig.call("task.kill", id=name, exec_id="", signal=signal.SIGKILL, all=True)):
                await self.require_end(name)
                self.model.containers[name] = "stopped"

    async def delete_container(self) -> None:
        for name in self._with_state("stopped"):
            if await self.expect(self.rig.call("task.delete", id=name, exec_id="")):
                del self.model.containers[name]

    def _with_state(self, *states: str) -> list[str]:
        """The first container in one of them, if the agent can be asked."""
        found = [name for name, state in self.model.containers.items() if state in states]
        return [] if self.model.hung else found[:1]

    async def arm(self, window: str, action: str) -> None:
        if not self.model.hung:
            self.rig.arm(window, f"{action} times=1")

    def disarm(self) -> None:
        for window in (*WINDOWS, "worker.answer"):
            self.rig.disarm(window)

    # -- truth -----------------------------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        return await self.rig.call("sandbox.status", key="", verbose=False)

    async def require_end(self, name: str) -> None:
        assert (await self.rig.call("task.wait", key="", id=name, exec_id=""))["exit_status"] == 137

    async def agree(self) -> None:
        """System and model say the same."""
        if self.model.state == "new":
            with pytest.raises(NotFound):
                await self.status()
            return
        assert (await self.status())["state"] == self.model.state
        if self.model.hung:
            return
        for name, state in self.model.containers.items():
            assert (await self.rig.call("task.state", key="", id=name, exec_id=""))["status"] == state


Step = Callable[[Pod], Awaitable[None]]
_ARM = st.builds(
    lambda armed: (f"arm {armed[0]} {armed[1]}", lambda pod: pod.arm(*armed)),
    st.one_of(
        st.tuples(st.sampled_from(WINDOWS), st.sampled_from(["error", "kill"])), st.just(("worker.answer", "kill"))
    ),
)
_CALLS = st.sampled_from(
    [
        ("create", Pod.create),
        ("start", Pod.start),
        ("stop", Pod.stop),
        ("kill worker", Pod.kill_worker),
        ("kill agent", Pod.kill_agent),
        ("hang agent", Pod.hang_agent),
        ("create container", Pod.create_container),
        ("start container", Pod.start_container),
        ("kill container", Pod.kill_container),
        ("delete container", Pod.delete_container),
    ]
)
_BEGINNING = st.sampled_from(
    [
        (),
        (("create", Pod.create),),
        (("create", Pod.create), ("start", Pod.start)),
        (("create", Pod.create), ("start", Pod.start), ("create container", Pod.create_container)),
    ]
)


async def example(r: Rig, number: int, steps: list[tuple[str, Step]]) -> None:
    """One sequence, in a sandbox of its own."""
    r.rename(f"pod{number}")
    pod = Pod(r)
    async with asyncio.timeout(LONGEST_SECONDS):
        await pod.begin()
        for name, step in steps:
            note(name)
            await step(pod)
            await pod.agree()
        await pod.end()


def test_any_sequence_converges() -> None:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        r = runner.run(stack.enter_async_context(rig()))
        numbers = iter(range(10_000))

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(beginning=_BEGINNING, steps=st.lists(st.one_of(_CALLS, _CALLS, _ARM), max_size=MOST_STEPS))
        def sequences(beginning: tuple[tuple[str, Step], ...], steps: list[tuple[str, Step]]) -> None:
            runner.run(example(r, next(numbers), [*beginning, *steps]))

        try:
            runner.run(r.start_zygote())
            sequences()
        finally:
            runner.run(stack.aclose())
