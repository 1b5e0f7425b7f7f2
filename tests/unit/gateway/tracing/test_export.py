"""What a collector gets, and what happens when it does not take it."""

from __future__ import annotations

import socket

import pytest

from kuasar.gateway.tracing.export import MOST_WAITING, Exporter
from kuasar.gateway.tracing.requests import NO_PARENT, Finished
from tests.deadline import eventually
from tests.standins.collector import Collector, collecting

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
ROOT, BUS, WORKER = "11" * 8, "22" * 8, "33" * 8
PAUSES, GATHER = (0.05, 0.1), 0.01


def finished(name: str = "Task.Start", error: str = "") -> Finished:
    spans = {
        WORKER: ["task.start", BUS, 200, 300, "worker", {"a": "b"}, error],
        BUS: ["bus task.start", ROOT, 150, 350, "gateway", {}, ""],
        ROOT: [name, NO_PARENT, 100, 400, "gateway", {}, ""],
    }
    return Finished(TRACE, spans, {"kuasar.engine": "runc"})


def test_a_trace_arrives_whole() -> None:
    with collecting() as collector:
        exporter = Exporter(collector.endpoint, PAUSES, GATHER)
        exporter.start()
        exporter.put(finished(error="no such container"))
        exporter.close()
        root, bus, worker = collector.trace(TRACE)
    assert [span.service for span in (root, bus, worker)] == ["kuasar-gateway", "kuasar-gateway", "kuasar-worker"]
    assert [span.kind for span in (root, bus, worker)] == [2, 3, 2]
    assert (root.parent, bus.parent, worker.parent) == ("", root.id, bus.id)
    assert (worker.start, worker.end, worker.error) == (200, 300, "no such container")
    assert worker.attributes == {"a": "b", "kuasar.engine": "runc"}
    assert (exporter.exported, exporter.dropped) == (1, 0)


def test_many_go_together() -> None:
    with collecting() as collector:
        exporter = Exporter(collector.endpoint, PAUSES, GATHER)
        for _ in range(100):
            exporter.put(finished())
        exporter.start()
        exporter.close()
        assert len(collector.spans) == 300
        assert collector.requests == 2


def test_a_busy_collector_gets_them_later() -> None:
    with collecting() as collector:
        collector.status = 503
        exporter = Exporter(collector.endpoint, PAUSES, GATHER)
        exporter.start()
        exporter.put(finished())
        eventually(lambda: collector.requests, "it is tried again", until=lambda requests: requests >= 2)
        assert not collector.spans
        collector.status = 200
        eventually(lambda: collector.spans, "it is taken")
        exporter.close()
        assert (exporter.exported, exporter.dropped) == (1, 0)


def test_what_is_refused_for_good_is_dropped() -> None:
    with collecting() as collector:
        collector.status = 400
        exporter = Exporter(collector.endpoint, PAUSES, GATHER)
        exporter.start()
        exporter.put(finished())
        eventually(lambda: exporter.dropped, "it is dropped")
        collector.status = 200
        exporter.put(finished("Task.Kill"))
        exporter.close()
        assert [span.name for span in collector.spans if not span.parent] == ["Task.Kill"]
        assert (exporter.exported, exporter.dropped) == (1, 1)


def test_a_collector_that_comes_back_gets_what_waited() -> None:
    with socket.socket() as nobody:
        nobody.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    exporter = Exporter(f"http://127.0.0.1:{port}/v1/traces", PAUSES, GATHER)
    exporter.start()
    exporter.put(finished())
    collector = Collector(port)
    try:
        eventually(lambda: collector.spans, "it arrives")
        exporter.close()
    finally:
        collector.close()


def test_an_end_does_not_wait_for_a_collector() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        exporter = Exporter(f"http://127.0.0.1:{nobody.getsockname()[1]}/", gather_seconds=GATHER)
        exporter.start()
        exporter.put(finished())
        exporter.close()
    assert (exporter.exported, exporter.dropped) == (0, 1)


@pytest.mark.parametrize("more", [1, 5])
def test_a_full_queue_loses_the_oldest(more: int) -> None:
    with collecting() as collector:
        exporter = Exporter(collector.endpoint, PAUSES, GATHER)
        for number in range(MOST_WAITING + more):
            exporter.put(finished(str(number)))
        assert exporter.dropped == more
        exporter.start()
        exporter.close()
        names = {span.name for span in collector.spans if not span.parent}
        assert str(more) in names
        assert str(more - 1) not in names
