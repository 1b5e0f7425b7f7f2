"""Who is traced, and what of."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from kuasar.gateway.tracing.requests import NO_PARENT, Finished, Tracer, current

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
IN_TRACE = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
REQUEST = SimpleNamespace(sandbox_id="", id="c1", exec_id="e1")


def make(ratio: float) -> tuple[Tracer, list[Finished]]:
    finished: list[Finished] = []
    return Tracer(ratio, finished.append), finished


def test_a_request_continues_its_caller_s_trace() -> None:
    tracer, finished = make(0.0)
    with tracer.request("Task.Start", IN_TRACE, REQUEST):
        running = current()
        assert running is not None
        with running.asking("s1", "runc", "task.start") as asked:
            assert asked.context.split("-")[1] == TRACE
            asked.extend({"ab" * 8: ["task.start", asked.id, 1, 2, "worker", {}, ""], "rubbish": [1]})
    assert current() is None
    (trace,) = finished
    assert trace.id == TRACE
    by_name = {span[0]: span for span in trace.spans.values()}
    assert set(by_name) == {"Task.Start", "bus task.start", "task.start"}
    assert by_name["Task.Start"][1] == PARENT
    assert trace.attributes == {
        "kuasar.sandbox.id": "s1",
        "kuasar.engine": "runc",
        "container.id": "c1",
        "kuasar.exec.id": "e1",
    }


@pytest.mark.parametrize(
    ("ratio", "metadata", "traced"),
    [
        (1.0, {}, True),
        (0.0, {}, False),
        (0.0, {"traceparent": "rubbish"}, False),
        (1.0, {"traceparent": "rubbish"}, True),
        (1.0, {"traceparent": f"00-{TRACE}-{PARENT}-00"}, False),
        (0.0, IN_TRACE, True),
    ],
)
def test_the_caller_decides_else_chance(ratio: float, metadata: dict[str, str], traced: bool) -> None:
    tracer, finished = make(ratio)
    with tracer.request("Task.State", metadata, REQUEST):
        assert (current() is not None) == traced
    assert bool(finished) == traced
    if traced and metadata is not IN_TRACE:
        ((*_, span),) = [list(trace.spans.values()) for trace in finished]
        assert span[1] == NO_PARENT


def test_an_error_is_told_and_passes() -> None:
    tracer, finished = make(1.0)
    with pytest.raises(KeyError), tracer.request("Task.State", {}, REQUEST):
        raise KeyError("c1")
    ((span,),) = [list(trace.spans.values()) for trace in finished]
    assert span[6] == "'c1'"


def test_requests_side_by_side_do_not_mix() -> None:
    tracer, finished = make(1.0)

    async def one(name: str) -> None:
        with tracer.request(name, {}, SimpleNamespace(id=name)):
            running = current()
            assert running is not None
            await asyncio.sleep(0)
            with running.asking(name, "runc", "op"):
                await asyncio.sleep(0)
            assert current() is running

    async def all_of_them() -> None:
        await asyncio.gather(*(one(f"c{number}") for number in range(5)))

    asyncio.run(all_of_them())
    assert len({trace.id for trace in finished}) == 5
    for trace in finished:
        assert trace.attributes["container.id"] == trace.attributes["kuasar.sandbox.id"]
        assert len(trace.spans) == 2
