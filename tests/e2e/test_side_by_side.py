"""Every engine of ours at once on one node: pods of each run, talk, end and go beside those of the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from kuasar.cli.cri import CriClient
from scripts.stack import Stack
from tests.deadline import SLOWNESS, Patience
from tests.e2e import leftovers
from tests.e2e.conftest import CALL_SECONDS
from tests.e2e.engines import EXEC, chosen_engines
from tests.e2e.harness import Container, Node, Pod

OURS = chosen_engines("")

# once, not once per engine: a run that chose one engine is about that engine
pytestmark = pytest.mark.skipif(bool(os.environ.get("ENGINE")), reason="one engine was chosen")


@pytest.fixture
def nodes(stack: Stack, cri: CriClient, clean: None, tmp_path: Path) -> Iterator[list[Node]]:
    """The node as each engine's."""
    Patience.factor = max(engine.patience for engine in OURS) * SLOWNESS
    cri.timeout = CALL_SECONDS * Patience.factor
    with ExitStack() as hosts:
        for engine in OURS:
            hosts.enter_context(engine.host())
        made = [Node(stack, cri, engine, str(tmp_path / engine.handler)) for engine in OURS]
        yield made
        for node in made:
            node.close()
    Patience.factor = SLOWNESS


def test_all_engines_run_at_once(nodes: list[Node]) -> None:
    def begin(node: Node) -> Container:
        return node.pod(node.engine.handler).run_idle("idle")

    def talk(idle: Container) -> None:
        pod = idle.pod
        command, said = pod.engine.programs.say(pod.engine.handler)
        container = pod.run(command, "talk")
        assert container.wait().exit_code == 0
        assert container.log() == said
        assert pod.run(pod.engine.programs.exit(42), "end").wait().exit_code == 42
        if pod.engine.can(EXEC):
            assert idle.exec("sh", "-c", "exit 7").exit_code == 7

    with ThreadPoolExecutor(len(nodes)) as pool:
        containers = list(pool.map(begin, nodes))
        pods = [container.pod for container in containers]
        assert len({pod.engine.handler for pod in pods}) == len(nodes)
        assert set(leftovers.workers(nodes[0].stack)) >= {pod.id for pod in pods}  # a worker each
        list(pool.map(talk, containers))
        assert len({pod.address for pod in pods}) == len(pods)
        victim, *others = pods
        victim.remove()
        assert all(pod.ready for pod in others) and all(container.running() for container in containers[1:])
        list(pool.map(Pod.remove, others))
