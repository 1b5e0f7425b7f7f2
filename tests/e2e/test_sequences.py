"""Random sequences of CRI calls, deaths and failpoints, through the real containerd, against a model: containerd's view
and the model's agree after every step, and whatever has happened, everything can be removed and leaves nothing.

``EXAMPLES=50`` looks longer, and elsewhere each time. tests/integration/workers/test_sequences.py does the same to a
worker alone, with steps that containerd would not take.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from kuasar.api.gen.cri.v1.container_pb2 import ContainerState
from kuasar.cli.cri import CriError
from tests import failpoints
from tests.deadline import eventually
from tests.e2e import leftovers
from tests.e2e.engines import EXEC, OURS, OWN_KERNEL
from tests.e2e.harness import Container, Node, Pod

EXAMPLES = int(os.environ.get("EXAMPLES", "6"))
STEPS = 14
MOST_PODS = 2
MOST_CONTAINERS = 3
LABELS = {"kuasar.test/sequences": "1"}
PROGRAMS = ("gateway", "keeper", "zygote")
WINDOWS = (
    "start.files",
    "record.cgroup",
    "start.cgroup",
    "process.agent.forked",
    "start.launch",
    "start.setup",
    "record.written",
    "freed.cgroup",
    "task.recorded",
    "task.made",
    "worker.answer",
    "agent.mounted",
    "gateway.added",
    "gateway.created",
    "gateway.started",
    "gateway.shut-down",
    "gateway.request.seen",
    "gateway.request.recorded",
    "gateway.request.done",
    "gateway.answer.placed",
)
"""To fail or to die at: what is under way is finished by a successor, or fails as a whole."""
_ONLY_FAILS = ("agent.mounted",)
"""A death there is the end of the sandbox."""
_ONLY_DIES = ("worker.answer", "gateway.")
"""A failure there is none: it is done, or whole connections fail."""
_CREATED, _RUNNING, _EXITED = (
    ContainerState.CONTAINER_CREATED,
    ContainerState.CONTAINER_RUNNING,
    ContainerState.CONTAINER_EXITED,
)

T = TypeVar("T")


@dataclass
class KnownContainer:
    """What must be true of a container. ``code``: how it has ended; None where containerd decides."""

    container: Container
    state: int = _CREATED
    code: int | None = None


@dataclass
class KnownPod:
    """What must be true of a pod."""

    pod: Pod
    ready: bool = True
    containers: list[KnownContainer] = field(default_factory=list)

    def ended(self, code: int | None) -> None:
        """It has, and whatever ran in it with ``code``."""
        self.ready = False
        for each in self.containers:
            if each.state == _RUNNING:
                each.state, each.code = _EXITED, code


class Refused(Exception):
    """By an armed failpoint, or because who would have done it died on the way and it is not repeated by itself."""


def insist(call: Callable[[], T]) -> T:
    """What a caller of CRI does: again while the Sandbox API is away. A failpoint's error is :class:`Refused`."""

    def attempt() -> tuple[T] | None:
        try:
            return (call(),)
        except CriError as error:
            if "failpoint" in str(error):
                raise Refused(str(error)) from error
            if error.code == grpc.StatusCode.UNAVAILABLE:
                return None
            raise

    done = eventually(attempt, "the call gets through", timeout=30)
    assert done is not None
    return done[0]


def converge(call: Callable[[], object]) -> None:
    """For what must come to its end whatever happens: a failpoint may fail it once."""
    for _ in range(3):
        try:
            insist(call)
        except Refused:
            continue
        return
    insist(call)


class Sequences(RuleBasedStateMachine):
    """One example. ``node`` is set by the test."""

    node: Node

    def __init__(self) -> None:
        super().__init__()
        self.stack, self.cri = self.node.stack, self.node.cri
        self.before = leftovers.present(self.stack)
        self.pods: list[KnownPod] = []
        self.points = f"{self.stack.layout.run}/failpoints"
        self.armed: set[str] = set()
        self.names = 0

    # -- pods ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.pods) < MOST_PODS)
    @rule()
    def run_pod(self) -> None:
        def run() -> Pod:
            self.names += 1
            return self.node.pod(f"sequence-{self.names}", labels=LABELS)

        try:
            self.pods.append(KnownPod(insist(run)))
        except Refused as refusal:
            note(f"refused: {refusal}")

    @precondition(lambda self: self.pods)
    @rule(pick=st.integers(0, 99))
    def stop_pod(self, pick: int) -> None:
        known = self.pods[pick % len(self.pods)]
        converge(known.pod.stop)
        known.ended(None)

    @precondition(lambda self: self.pods)
    @rule(pick=st.integers(0, 99))
    def remove_pod(self, pick: int) -> None:
        self._remove(self.pods.pop(pick % len(self.pods)))

    def _remove(self, known: KnownPod) -> None:
        converge(known.pod.stop)
        converge(lambda: self.cri.remove_pod(known.pod.id))

    # -- containers ------------------------------------------------------------------------------------------------

    def _ready(self) -> list[KnownPod]:
        return [known for known in self.pods if known.ready and len(known.containers) < MOST_CONTAINERS]

    def _with_state(self, *states: int) -> list[tuple[KnownPod, KnownContainer]]:
        return [(pod, each) for pod in self.pods if pod.ready for each in pod.containers if each.state in states]

    @precondition(lambda self: self._ready())
    @rule(pick=st.integers(0, 99))
    def create(self, pick: int) -> None:
        known = self._ready()[pick % len(self._ready())]
        self._create(known, known.pod.engine.programs.idle())

    def _create(self, known: KnownPod, command: object) -> KnownContainer | None:
        self.names += 1
        name = f"c{self.names}"
        try:
            made = KnownContainer(insist(lambda: known.pod.create(command, name)))  # type: ignore[arg-type]  # a command
        except Refused as refusal:
            note(f"refused: {refusal}")
            return None
        known.containers.append(made)
        return made

    @precondition(lambda self: self._with_state(_CREATED))
    @rule(pick=st.integers(0, 99))
    def start(self, pick: int) -> None:
        found = self._with_state(_CREATED)
        self._start(found[pick % len(found)][1])

    def _start(self, known: KnownContainer) -> bool:
        try:
            insist(known.container.start)
        except Refused as refusal:
            note(f"refused: {refusal}")
            known.state, known.code = _EXITED, None  # as containerd calls what it could not start
            return False
        known.state = _RUNNING
        return True

    @precondition(lambda self: self._ready())
    @rule(pick=st.integers(0, 99), code=st.integers(1, 125))
    def run_to_its_end(self, pick: int, code: int) -> None:
        pod = self._ready()[pick % len(self._ready())]
        made = self._create(pod, pod.pod.engine.programs.exit(code))
        if made is not None and self._start(made):
            made.state, made.code = _EXITED, code

    @precondition(lambda self: self._with_state(_RUNNING) and self.node.engine.can(EXEC))
    @rule(pick=st.integers(0, 99), code=st.integers(0, 125))
    def execute(self, pick: int, code: int) -> None:
        found = self._with_state(_RUNNING)
        container = found[pick % len(found)][1].container
        try:
            result = insist(lambda: container.exec("sh", "-c", f"echo {code}; exit {code}", timeout=20))
        except Refused as refusal:
            note(f"refused: {refusal}")
            return
        assert (result.exit_code, result.stdout) == (code, b"%d\n" % code)

    @precondition(lambda self: self._with_state(_RUNNING))
    @rule(pick=st.integers(0, 99))
    def kill(self, pick: int) -> None:
        found = self._with_state(_RUNNING)
        known = found[pick % len(found)][1]
        converge(known.container.stop)
        known.state, known.code = _EXITED, 137

    @precondition(lambda self: self._with_state(_CREATED, _RUNNING, _EXITED))
    @rule(pick=st.integers(0, 99))
    def remove(self, pick: int) -> None:
        found = self._with_state(_CREATED, _RUNNING, _EXITED)
        pod, known = found[pick % len(found)]
        converge(known.container.remove)
        pod.containers.remove(known)

    # -- deaths ----------------------------------------------------------------------------------------------------

    @rule(program=st.sampled_from(PROGRAMS))
    def kill_program(self, program: str) -> None:
        self._kill(program)

    @precondition(lambda self: self._ready())
    @rule(pick=st.integers(0, 99))
    def kill_worker(self, pick: int) -> None:
        self._kill(f"sandbox:{self._ready()[pick % len(self._ready())].pod.id}")

    def _kill(self, program: str) -> None:
        """Gateway and keeper do not die at once: each is back before somebody else dies."""
        victim = eventually(lambda: self.stack.pid(program), f"{program} runs")
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: self.stack.pid(program), f"{program} is replaced", until=lambda pid: pid not in (0, victim))
        if program in PROGRAMS:
            self.stack.wait_ready()
            self._settled(program)

    def _settled(self, program: str) -> None:
        def state() -> str:
            return str({info["name"]: info["statename"] for info in self.stack.programs()}[program])

        eventually(state, f"{program} runs", until=lambda seen: seen == "RUNNING")

    @precondition(lambda self: self._ready())
    @rule(pick=st.integers(0, 99))
    def kill_agent(self, pick: int) -> None:
        known = self._ready()[pick % len(self._ready())]
        pid = insist(lambda: self._agent(known.pod))
        os.kill(pid, signal.SIGKILL)
        known.ended(137)

    def _agent(self, pod: Pod) -> int:
        info = dict(self.cri.pod_status(pod.id, verbose=True).info)
        return int(info["pid"])

    @rule(window=st.sampled_from(WINDOWS), dies=st.booleans())
    def arm(self, window: str, dies: bool) -> None:
        dies = (dies and not window.startswith(_ONLY_FAILS)) or window.startswith(_ONLY_DIES)
        failpoints.arm(self.points, window, f"{'kill' if dies else 'error'} times=1")
        self.armed.add(window)

    # -- truth -----------------------------------------------------------------------------------------------------

    @invariant()
    def agree(self) -> None:
        """containerd says what the model says, soon."""
        for known in self.pods:
            eventually(
                lambda known=known: insist(lambda: known.pod.ready),  # type: ignore[misc]  # the default binds it
                f"{known.pod.config.metadata.name} is {'' if known.ready else 'not '}ready",
                until=lambda ready, known=known: ready == known.ready,  # type: ignore[misc]  # likewise
            )
            for each in known.containers:
                self._agree(each)

    def _agree(self, known: KnownContainer) -> None:
        status = eventually(
            lambda: insist(known.container.status),
            f"{known.container.name} is {ContainerState.Name(known.state)}",  # type: ignore[arg-type]  # one of them
            until=lambda status: status.state == known.state,
        )
        if known.state == _EXITED and known.code is not None:
            assert status.exit_code == known.code

    def teardown(self) -> None:
        """Everything goes, from wherever it is, and leaves nothing."""
        for window in self.armed:
            failpoints.disarm(self.points, window)
        for known in self.pods:
            self._remove(known)
        for pod in self.cri.list_pods(labels=LABELS):  # what could not be made, and containerd remembers
            converge(lambda pod=pod: self.cri.stop_pod(pod.id))  # type: ignore[misc]  # the default binds it
            converge(lambda pod=pod: self.cri.remove_pod(pod.id))  # type: ignore[misc]  # likewise
        eventually(lambda: leftovers.present(self.stack) - self.before, "nothing is left", until=lambda left: not left)


def test_any_sequence_converges(node: Node) -> None:
    if not node.engine.can(OURS) or node.engine.can(OWN_KERNEL):
        pytest.skip("failpoints are ours, and a machine's agent has none")

    class Example(Sequences):
        pass

    Example.node = node
    run_state_machine_as_test(
        Example,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize="EXAMPLES" not in os.environ,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
