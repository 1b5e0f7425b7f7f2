"""One trace from containerd's own request to the agent: both report to the same collector."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import pytest

from kuasar.cli.cri import CriClient
from scripts.layout import CHECKOUT
from scripts.stack import Stack
from tests.deadline import eventually
from tests.e2e.conftest import CALL_SECONDS
from tests.e2e.engines import EXEC, OURS, SHELL
from tests.e2e.harness import Node
from tests.e2e.stack import TRACED, TRACED_SUBNET, start_stack
from tests.standins.collector import Collector, Seen, collecting

pytestmark = pytest.mark.needs(OURS)
CONTAINERD = "containerd"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


@pytest.fixture(scope="module")
def stack(collector: Collector) -> Iterator[Stack]:
    """A stack of its own, whose containerd and gateway tell the collector."""
    environment = (
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.base),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_SERVICE_NAME", CONTAINERD),
        ("OTEL_BSP_SCHEDULE_DELAY", "200"),
    )
    settings = f'\n[tracing]\nendpoint = "{collector.endpoint}"\n'
    logs = f"{CHECKOUT}/.kuasar/e2e-logs-traced"
    with start_stack(TRACED, TRACED_SUBNET, settings, environment, logs) as running:
        yield running


@pytest.fixture(scope="module")
def cri(stack: Stack) -> Iterator[CriClient]:
    with CriClient(stack.layout.containerd_socket, timeout=CALL_SECONDS) as client:
        client.runtime_status()
        yield client


def ours(collector: Collector, call: str, since: int) -> list[Seen]:
    """The gateway's spans of that name that began after ``since``."""
    found = (span for span in collector.spans if (span.service, span.name) == ("kuasar-gateway", call))
    return [span for span in found if span.start >= since]


def path(collector: Collector, span: Seen) -> list[Seen]:
    """From the root of its trace to the span."""
    by_id = {each.id: each for each in collector.trace(span.trace)}
    line = [span]
    while line[0].parent in by_id:
        line.insert(0, by_id[line[0].parent])
    return line


@pytest.mark.needs(EXEC, SHELL)
def test_a_pod_s_calls_continue_containerd_s_traces(node: Node, collector: Collector) -> None:
    since = time.time_ns()
    pod = node.pod()
    container = pod.run_idle()
    assert container.sh("echo traced") == "traced\n"

    # containerd sends its context with the calls of the Task API, not with those of the Sandbox API
    for call in ("Task.Create", "Task.Start", "Task.Exec"):
        for span in eventually(partial(ours, collector, call, since), call):
            line = eventually(partial(path, collector, span), f"what asked for {call}", until=begins_in_containerd)
            assert line[0].start <= span.start <= span.end <= line[0].end
            check_inside(node, pod.id, collector.trace(span.trace), span)
    for call in ("Controller.Create", "Controller.Start"):
        (span,) = ours(collector, call, since)
        assert not span.parent
        check_inside(node, pod.id, collector.trace(span.trace), span)


def begins_in_containerd(line: list[Seen]) -> bool:
    """Whether the whole way is there."""
    return line[0].service == CONTAINERD and not line[0].parent


def check_inside(node: Node, pod: str, trace: list[Seen], span: Seen) -> None:
    """Everything below the gateway's span: it says what it is about, and goes the whole way."""
    by_parent: dict[str, list[Seen]] = {}
    for each in trace:
        by_parent.setdefault(each.parent, []).append(each)
    inside = [span]
    for each in inside:  # grows while it is walked
        inside += by_parent.get(each.id, [])
    services = {each.service for each in inside}
    wanted = {"kuasar-gateway", "kuasar-worker", "kuasar-agent"}
    assert services == (wanted if span.name != "Controller.Create" else wanted - {"kuasar-agent"}), span.name
    assert {each.attributes["kuasar.sandbox.id"] for each in inside} == {pod}
    assert {each.attributes["kuasar.engine"] for each in inside} == {node.engine.handler.removeprefix("kuasar-")}
    assert not any(each.error for each in inside)
