"""One trace over gateway, bus, worker and agent, as a collector gets it; nothing of it where tracing is off."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from kuasar.api.gen.containerd.sandbox.v1 import controller_pb2 as pb
from kuasar.api.gen.kuasar.admin.v1 import admin_pb2
from tests import needs
from tests.deadline import eventually
from tests.integration.gateway.node import METADATA, SECONDS, Node, running
from tests.scraping import scrape
from tests.standins.collector import Collector, Seen, collecting

pytestmark = needs.ROOT
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
METRICS = '[metrics]\nlisten = "unix:DIR/s/metrics.sock"\n'
SERVER, CLIENT, INTERNAL = 2, 3, 1


@contextmanager
def tracing(ratio: float = 1.0) -> Iterator[tuple[Node, Collector]]:
    with collecting() as collector:
        settings = f'[tracing]\nendpoint = "{collector.endpoint}"\nsample_ratio = {ratio}\n{METRICS}'
        with running(settings) as node:
            node.admin.ListSandboxes(admin_pb2.ListSandboxesRequest(), timeout=SECONDS, wait_for_ready=True)
            yield node, collector


def in_trace(flags: str = "01") -> tuple[tuple[str, str], ...]:
    """The metadata of a caller that is in a trace of its own."""
    return (*METADATA, ("traceparent", f"00-{TRACE}-{PARENT}-{flags}"))


def named(spans: list[Seen], service: str, name: str) -> Seen:
    (found,) = [span for span in spans if (span.service, span.name) == (f"kuasar-{service}", name)]
    return found


def test_a_start_is_one_trace_from_the_caller_to_the_agent_and_back() -> None:
    with tracing() as (node, collector):
        node.create("aaa1", "web")
        request = pb.ControllerStartRequest(sandbox_id="aaa1")
        node.controller.Start(request, metadata=in_trace(), timeout=SECONDS)
        spans = eventually(lambda: collector.trace(TRACE), "the trace", until=bool)

        asked = named(spans, "gateway", "Controller.Start")
        assert asked.parent == PARENT
        bus = named(spans, "gateway", "bus sandbox.start")
        assert bus.parent == asked.id
        worker = named(spans, "worker", "sandbox.start")
        assert worker.parent == bus.id
        call = named(spans, "worker", "call setup")
        assert call.parent == worker.id
        agent = named(spans, "agent", "setup")
        assert agent.parent == call.id
        assert [span.kind for span in (asked, bus, worker, call, agent)] == [SERVER, CLIENT, SERVER, CLIENT, SERVER]
        for inner, outer in ((bus, asked), (worker, bus), (call, worker), (agent, call)):
            assert outer.start <= inner.start <= inner.end <= outer.end
        for name in ("files", "cgroup", "launch", "agent", "setup"):
            phase = named(spans, "worker", f"phase {name}")
            assert (phase.parent, phase.kind) == (worker.id, INTERNAL)
        assert {span.attributes["kuasar.sandbox.id"] for span in spans} == {"aaa1"}
        assert {span.attributes["kuasar.engine"] for span in spans} == {"runc"}
        assert not any(span.error for span in spans)


def test_a_caller_without_a_trace_begins_one_and_errors_are_told() -> None:
    with tracing() as (node, collector):
        node.create("aaa1", "web")
        with pytest.raises(grpc.RpcError):
            node.start("unknown")
        with pytest.raises(grpc.RpcError):
            node.create("aaa1", "web")  # it is there already
        node.forget("aaa1")
        spans = eventually(lambda: collector.spans, "all of them", until=lambda found: len(errors(found)) >= 4)
        create, again = (span for span in spans if span.name == "Controller.Create")
        assert create.parent == again.parent == ""
        assert create.trace != again.trace
        start = named(spans, "gateway", "Controller.Start")
        assert "does not exist" in start.error
        assert start.attributes["kuasar.sandbox.id"] == "unknown"
        (worker,) = [span for span in spans if span.service == "kuasar-worker" and span.error]
        assert (worker.name, worker.trace) == ("sandbox.create", again.trace)
        assert "exists already" in worker.error


def errors(spans: list[Seen]) -> list[Seen]:
    return [span for span in spans if span.error]


def test_a_caller_who_is_not_traced_is_not_traced_here() -> None:
    """W3C's flag, and the share of those who say nothing."""
    with tracing(ratio=0) as (node, collector):
        node.run("aaa1", "web")
        request = pb.ControllerStatusRequest(sandbox_id="aaa1")
        node.controller.Status(request, metadata=in_trace("00"), timeout=SECONDS)
        node.controller.Status(request, metadata=in_trace(), timeout=SECONDS)
        spans = eventually(lambda: collector.spans, "the traced one", until=bool)
        assert {span.trace for span in spans} == {TRACE}
        assert [span.name for span in spans if span.parent == PARENT] == ["Controller.Status"]
        # counted when the collector has answered, which is after we have seen it
        eventually(
            lambda: scrape(node.config.metrics.listen).value("kuasar_traces_total", result="exported"),
            "it is counted",
            until=lambda count: count == 1,
        )


def test_a_worker_that_dies_does_not_break_the_trace() -> None:
    """Its successor answers, in the same trace."""
    with tracing() as (node, collector):
        node.run("aaa1", "web")
        answer = node.admin.GetSandbox(admin_pb2.GetSandboxRequest(id="aaa1"), timeout=SECONDS)
        os.kill(answer.sandbox.worker_pid, signal.SIGSTOP)
        waiting = node.controller.Status.future(
            pb.ControllerStatusRequest(sandbox_id="aaa1"), metadata=in_trace(), timeout=SECONDS
        )
        os.kill(answer.sandbox.worker_pid, signal.SIGKILL)
        assert waiting.result().state == "SANDBOX_READY"
        spans = eventually(lambda: collector.trace(TRACE), "the trace", until=bool)
        assert named(spans, "worker", "sandbox.status").parent == named(spans, "gateway", "bus sandbox.status").id


def test_a_collector_that_is_away_holds_nobody_up() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        with running(f'[tracing]\nendpoint = "http://127.0.0.1:{port}/v1/traces"\n') as node:
            node.run("aaa1", "web")
            log = Path(f"{node.directory}/l/gateway.log")
            eventually(log.read_text, "the reason", until=lambda text: "the collector of traces is away" in text)
            node.remove("aaa1")
