"""Spans: contexts as W3C writes them, nesting, and that what others send is looked at."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuasar.core import spans
from kuasar.core.aio import Loop
from kuasar.core.spans import MOST_SPANS, Context, Nothing, Span, Trace, parse, valid

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TEXT = f"00-{TRACE}-{PARENT}-01"


def test_a_context_is_what_w3c_says() -> None:
    context = parse(TEXT)
    assert context is not None
    assert (context.trace, context.span, context.sampled) == (TRACE, PARENT, True)
    assert str(context) == TEXT
    not_sampled = parse(f"00-{TRACE}-{PARENT}-00")
    assert not_sampled is not None
    assert not not_sampled.sampled
    later = parse(f"cc-{TRACE}-{PARENT}-03-what-the-future-brings")
    assert later is not None
    assert later.sampled


@pytest.mark.parametrize(
    "text",
    [
        "",
        TRACE,
        TEXT + "-more",
        TEXT.upper(),
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE}-{PARENT}",
        f"00-{'x' * 32}-{PARENT}-01",
    ],
)
def test_what_is_no_context(text: str) -> None:
    assert parse(text) is None


@given(st.text(max_size=80))
def test_any_text_is_a_context_or_none(text: str) -> None:
    context = parse(text)
    assert context is None or parse(str(context)) is not None


def test_spans_nest_and_tell_their_errors() -> None:
    async def work() -> Trace:
        trace = spans.begin(TEXT, "worker")
        assert trace is not None
        with spans.span("outer") as outer:
            assert outer.context.startswith(f"00-{TRACE}-")
            with pytest.raises(ValueError, match="odd"), spans.span("inner", what="x"):
                raise ValueError("odd")
        with spans.span("after"):
            pass
        return trace

    trace = Loop().run(work())
    by_name = {span[0]: (number, span) for number, span in trace.spans.items()}
    assert list(by_name) == ["inner", "outer", "after"]  # as they end
    assert by_name["outer"][1][1] == PARENT
    assert by_name["after"][1][1] == PARENT
    inner = by_name["inner"][1]
    assert inner[1] == by_name["outer"][0]
    assert (inner[4], inner[5], inner[6]) == ("worker", {"what": "x"}, "odd")
    assert inner[2] <= inner[3]
    assert valid(trace.spans) == trace.spans


def test_a_task_carries_its_trace_along_and_leaves_others_alone() -> None:
    loop = Loop()
    seen: dict[str, Trace | None] = {}

    async def child() -> None:
        await loop.sleep(0)
        seen["child"] = spans.current()

    async def traced() -> None:
        seen["begun"] = spans.begin(TEXT, "agent")
        await loop.spawn(child())
        seen["traced"] = spans.current()

    async def other() -> None:
        for _ in range(5):
            assert spans.current() is None
            await loop.sleep(0)

    async def both() -> None:
        first, second = loop.spawn(traced()), loop.spawn(other())
        await first
        await second
        seen["outside"] = spans.current()

    loop.run(both())
    assert seen["begun"] is not None
    assert seen["child"] is seen["traced"] is seen["begun"]
    assert seen["outside"] is None
    assert spans.current() is None


def test_what_a_request_leaves_running_records_nothing_more() -> None:
    loop = Loop()
    late: list[object] = []

    async def watcher() -> None:
        await loop.sleep(0.001)
        late.append(spans.current())
        with spans.span("late"):
            pass

    async def request() -> Trace:
        trace = spans.begin(TEXT, "worker")
        assert trace is not None
        with spans.span("own"):
            late.append(loop.spawn(watcher()))
        assert [span[0] for span in trace.finish().values()] == ["own"]
        return trace

    async def both() -> Trace:
        trace = await loop.spawn(request())
        while len(late) < 2:
            await loop.sleep(0.001)
        return trace

    trace = loop.run(both())
    assert late[1] is None
    assert trace.spans == {}


@pytest.mark.parametrize("text", [None, "", "rubbish", f"00-{TRACE}-{PARENT}-00"])
def test_what_is_not_traced_costs_nothing(text: str | None) -> None:
    async def work() -> None:
        assert spans.begin(text, "worker") is None
        assert isinstance(spans.span("x"), Nothing)

    Loop().run(work())


def test_laps_end_now_and_too_many_spans_are_left_out() -> None:
    trace = Trace(Context(TRACE, PARENT), "worker")
    trace.lap("phase x", 0.5)
    ((name, parent, start, end, *_),) = trace.spans.values()
    assert (name, parent, end - start) == ("phase x", PARENT, 500_000_000)
    assert abs(time.time_ns() - end) < 60e9
    for _ in range(2 * MOST_SPANS):
        with Span(trace, "y", {}):
            pass
    assert len(trace.spans) == MOST_SPANS


GOOD: list[Any] = ["task.start", PARENT, 5, 7, "agent", {"a": "b"}, ""]


@pytest.mark.parametrize(
    ("number", "span"),
    [
        ("x", GOOD),
        ("0" * 16, GOOD),
        (PARENT, None),
        (PARENT, GOOD[:-1]),
        (PARENT, [*GOOD, 1]),
        (PARENT, ["n", "", *GOOD[2:]]),
        (PARENT, [*GOOD[:2], 7, 5, *GOOD[4:]]),
        (PARENT, [*GOOD[:2], -1, 5, *GOOD[4:]]),
        (PARENT, [*GOOD[:2], 5, 1 << 63, *GOOD[4:]]),
        (PARENT, [*GOOD[:5], {"a": 1}, ""]),
        (PARENT, [*GOOD[:5], {1: "a"}, ""]),
        (PARENT, [1, *GOOD[1:]]),
    ],
)
def test_what_is_no_span_is_left_out(number: str, span: Any) -> None:
    assert valid({PARENT: GOOD} | {number: span}) == ({} if number == PARENT else {PARENT: GOOD})
