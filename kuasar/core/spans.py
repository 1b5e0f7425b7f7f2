"""What a process records of one traced request: spans, which travel back with the answer (docs/tracing.md).

Only what worker and agent need, and nothing of any tracing library: a trace context is a W3C ``traceparent``, a span a
short list. A request that is not traced costs one comparison wherever a span could begin. The trace of a request is the
``local`` of the task that carries it out (``core/aio.py``), so it need not be handed from function to function.
"""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Any

from kuasar.core import aio

MOST_SPANS = 128
"""Of one request in one process; what comes later is left out."""
_HEX = frozenset("0123456789abcdef")
_LENGTHS = (2, 32, 16, 2)

Spans = dict[str, Any]
"""As they travel: by id (16 hexadecimal digits) a list of ``name``, ``parent`` (such an id), ``start`` and ``end``
(nanoseconds UTC), ``process``, ``attributes`` (a map of strings), ``error`` (empty: none)."""
_WIRE = (str, str, int, int, str, dict, str)


class Context:
    """A ``traceparent``: which trace, and which span asks."""

    __slots__ = ("sampled", "span", "trace")

    def __init__(self, trace: str, span: str, sampled: bool = True) -> None:
        self.trace = trace
        self.span = span
        self.sampled = sampled

    def __str__(self) -> str:
        return f"00-{self.trace}-{self.span}-{int(self.sampled):02x}"


def parse(text: str) -> Context | None:
    """The context in a ``traceparent``; None for what is none (then, says W3C, there is none)."""
    parts = text.split("-")
    if tuple(map(len, parts[:4])) != _LENGTHS or not all(_HEX.issuperset(part) for part in parts[:4]):
        return None
    version, trace, span, flags = parts[:4]
    if version == "ff" or (version == "00" and len(parts) > 4) or not int(trace, 16) or not int(span, 16):
        return None
    return Context(trace, span, bool(int(flags, 16) & 1))


def new_span_id() -> str:
    """Random; of the kernel, because forks and clones of machines share every other state."""
    return os.urandom(8).hex()


def valid(spans: Spans) -> Spans:
    """Those of ``spans`` that are some: who gets them has not made them."""
    return {number: span for number, span in spans.items() if is_id(number) and _is_span(span)}


def is_id(text: str) -> bool:
    """Whether it is the id of a span."""
    return len(text) == _LENGTHS[2] and _HEX.issuperset(text) and int(text, 16) > 0


def _is_span(span: Any) -> bool:
    return (
        type(span) is list
        and tuple(map(type, span)) == _WIRE
        and is_id(span[1])
        and 0 <= span[2] <= span[3] < 1 << 63
        and all(type(name) is type(value) is str for name, value in span[5].items())
    )


class Span:
    """One span, from entering to leaving; an exception that passes is its error."""

    __slots__ = ("_before", "_trace", "attributes", "error", "id", "name", "parent", "start")

    def __init__(self, trace: Trace, name: str, attributes: dict[str, str]) -> None:
        self._trace = trace
        self.name = name
        self.attributes = attributes
        self.id = new_span_id()
        self.parent = trace.inner
        self.start = time.time_ns()
        self.error = ""

    def __enter__(self) -> Span:
        self._before, self._trace.inner = self._trace.inner, self.id
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._trace.inner = self._before
        if error is not None:
            self.error = str(error) or type(error).__name__
        self._trace.add(self, time.time_ns())

    @property
    def context(self) -> str:
        """For whoever is asked within it."""
        return str(Context(self._trace.id, self.id))

    def extend(self, spans: Spans) -> None:
        """What that one has recorded, unchecked."""
        self._trace.extend(spans)


class Nothing:
    """Instead of a span where nothing is traced."""

    __slots__ = ()
    context = ""

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *_: object) -> None:
        pass


_NOTHING = Nothing()


class Trace:
    """The spans of one request in one process; ``process`` says which, ``context`` who asks."""

    __slots__ = ("_process", "finished", "id", "inner", "spans")

    def __init__(self, context: Context, process: str) -> None:
        self._process = process
        self.id = context.trace
        self.inner = context.span
        """The span that would be the parent of one that begins now."""
        self.spans: Spans = {}
        self.finished = False

    def finish(self) -> Spans:
        """The request is answered: what was recorded. Tasks that it has left behind, and that may run as long as the
        sandbox, record nothing more and keep nothing of it."""
        self.finished, found, self.spans = True, self.spans, {}
        return found

    def add(self, span: Span, end: int) -> None:
        """A span has ended."""
        end = max(span.start, end)  # the clock may have been set
        self._put(span.id, [span.name, span.parent, span.start, end, self._process, span.attributes, span.error])

    def lap(self, name: str, seconds: float) -> None:
        """A span that ends now and began ``seconds`` ago."""
        end = time.time_ns()
        self._put(new_span_id(), [name, self.inner, end - int(seconds * 1e9), end, self._process, {}, ""])

    def extend(self, spans: Spans) -> None:
        """Spans of a process that was asked; what is none is left out."""
        for number, span in valid(spans).items():
            self._put(number, span)

    def _put(self, number: str, span: list[Any]) -> None:
        if len(self.spans) < MOST_SPANS and not self.finished:
            self.spans[number] = span


def begin(text: str | None, process: str) -> Trace | None:
    """From here on the running task, and what it spawns, is traced, if ``text`` is the context of a sampled trace."""
    context = parse(text) if text else None
    if context is None or not context.sampled:
        return None
    trace = Trace(context, process)
    aio.set_local(trace)
    return trace


def current() -> Trace | None:
    """Of the running task; None where nothing is traced."""
    found = aio.get_local()
    return found if isinstance(found, Trace) and not found.finished else None


def span(name: str, **attributes: str) -> Span | Nothing:
    """To be entered around what it names. Costs next to nothing where nothing is traced."""
    trace = current()
    return _NOTHING if trace is None else Span(trace, name, attributes)
