"""Fixtures of the suite: one stack a session, one set of tests per engine, nothing left over after any test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kuasar.cli.cri import CriClient
from scripts.stack import Stack
from tests import leaks
from tests.deadline import SLOWNESS, Patience, eventually
from tests.e2e import leftovers
from tests.e2e.engines import BRIEF, Engine, chosen_engines
from tests.e2e.harness import Node, Pod
from tests.e2e.stack import KEPT_LOGS, start_stack, tail

CALL_SECONDS = 20.0
"""How long a call of CRI may take, times the engine's patience."""


def pytest_configure(config: pytest.Config) -> None:
    """The marker by which a test says what its engine must be able to do."""
    config.addinivalue_line("markers", "needs(*capabilities): skipped on engines that do not declare them all")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that uses an engine runs on each of those chosen by ENGINE."""
    if "engine" in metafunc.fixturenames:
        engines = chosen_engines(os.environ.get("ENGINE", ""))
        metafunc.parametrize("engine", engines, ids=[engine.handler for engine in engines], scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drops what the engine does not declare to have, and, when no engine was chosen, what takes a slow one too long;
    everything here is end-to-end."""
    left_out: list[pytest.Item] = []
    for item in items:
        if not item.path.is_relative_to(Path(__file__).parent):
            continue
        item.add_marker(pytest.mark.e2e)
        engine = item.callspec.params.get("engine") if hasattr(item, "callspec") else None
        if not isinstance(engine, Engine):
            continue
        if engine.brief and not os.environ.get("ENGINE") and item.path.stem not in BRIEF:
            left_out.append(item)
            continue
        needed = {capability for marker in item.iter_markers("needs") for capability in marker.args}
        if not needed <= engine.capabilities:
            missing = ", ".join(sorted(needed - engine.capabilities))
            item.add_marker(pytest.mark.skip(reason=f"{engine.handler} does not declare: {missing}"))
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failure comes with the ends of the logs that may tell why."""
    report: pytest.TestReport = yield  # type: ignore[assignment]  # what a wrapped hook yields
    stack = getattr(item, "funcargs", {}).get("stack")
    if report.failed and isinstance(stack, Stack):
        node = getattr(item, "funcargs", {}).get("node")
        names = ["gateway.log", "containerd.log", "zygote.log", "keeper.log"]
        pods = node.pods if isinstance(node, Node) else []
        directory = f"{stack.layout.logs}/sandboxes"
        names += [
            f"sandboxes/{name}"
            for name in (sorted(os.listdir(directory)) if os.path.exists(directory) else ())
            if name.startswith(("direct-", *pods))
        ]
        for name in names:
            text = tail(f"{stack.layout.logs}/{name}")
            if text:
                report.sections.append((f"end of {KEPT_LOGS}/{name}", text))
    return report  # type: ignore[return-value]  # likewise


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """The stack of this session. Its daemons are init's, also if tests that adopt orphans ran before."""
    leaks.adopt_orphans(False)
    with start_stack() as running:
        yield running


@pytest.fixture(scope="session")
def cri(stack: Stack) -> Iterator[CriClient]:
    """A CRI client of it."""
    with CriClient(stack.layout.containerd_socket, timeout=CALL_SECONDS * SLOWNESS) as client:
        client.runtime_status()  # connects: else the first test would seem to have left the connection behind
        yield client


@pytest.fixture
def clean(stack: Stack) -> Iterator[None]:
    """Fails a test that leaves anything of a pod behind."""
    before = leftovers.present(stack)
    yield
    eventually(
        lambda: sorted(leftovers.present(stack) - before),
        "nothing is left over",
        until=lambda left: not left,
        timeout=5,
    )


@pytest.fixture
def node(stack: Stack, cri: CriClient, engine: Engine, clean: None, tmp_path: Path) -> Iterator[Node]:
    """Makes pods for one test."""
    Patience.factor = engine.patience * SLOWNESS
    cri.timeout = CALL_SECONDS * Patience.factor
    with engine.host():
        made = Node(stack, cri, engine, str(tmp_path))
        yield made
        made.close()
    Patience.factor = SLOWNESS


@pytest.fixture
def pod(node: Node) -> Pod:
    """A pod on the pod network."""
    return node.pod()
