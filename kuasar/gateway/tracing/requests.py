"""One trace per request: from containerd's context, if it sent one, over gateway, bus, worker and agent.

Worker and agent send their spans along with their answers; when the request has been answered, everything is handed to
whoever exports it. Used on the gateway's loop; the trace of the running request is a context variable, so the services
know nothing of it. Waits are not traced: they last as long as what they wait for.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from kuasar.core.spans import Context, Span, Spans, Trace, parse

KEY = "traceparent"
NO_PARENT = "0" * 16
_PROCESS = "gateway"
_NOTHING = nullcontext()


@dataclass(frozen=True)
class Finished:
    """A trace of a request that has been answered."""

    id: str
    """32 hexadecimal digits."""
    spans: Spans
    attributes: dict[str, str]
    """Of every span: what it is about."""


class RequestTrace:
    """Of one request, while it is answered."""

    def __init__(self, context: Context) -> None:
        self.trace = Trace(context, _PROCESS)
        self.attributes: dict[str, str] = {}

    def asking(self, sandbox: str, engine: str, op: str) -> Span:
        """A span around a request to a worker; what is asked under its context comes back to it."""
        self.attributes |= {"kuasar.sandbox.id": sandbox, "kuasar.engine": engine}
        return Span(self.trace, f"bus {op}", {})


_running: ContextVar[RequestTrace | None] = ContextVar("kuasar trace", default=None)


def current() -> RequestTrace | None:
    """The trace of the request being answered; None if it is not traced."""
    return _running.get()


class Tracer:
    """One per gateway that traces. ``ratio`` of the requests without a context of their own are traced; ``finished``
    is called, on the loop, with each trace."""

    def __init__(self, ratio: float, finished: Callable[[Finished], None]) -> None:
        self._ratio = ratio
        self._finished = finished

    def request(self, method: str, metadata: Mapping[str, str], request: Any) -> AbstractContextManager[None]:
        """Enter around the answering of one request; whether it is traced is decided by its caller, else by chance."""
        context = parse(metadata[KEY]) if KEY in metadata else None
        if context is None:
            if random.random() >= self._ratio:  # noqa: S311 - no secret
                return _NOTHING
            context = Context(os.urandom(16).hex(), NO_PARENT)
        return self._traced(context, method, request) if context.sampled else _NOTHING

    @contextmanager
    def _traced(self, context: Context, method: str, request: Any) -> Iterator[None]:
        running = RequestTrace(context)
        running.attributes |= _about(request)
        token = _running.set(running)
        try:
            with Span(running.trace, method, {"rpc.method": method}):
                yield
        finally:
            _running.reset(token)
            self._finished(Finished(running.trace.id, running.trace.finish(), running.attributes))


def _about(request: Any) -> dict[str, str]:
    """What a request of either API names."""
    named = {
        "kuasar.sandbox.id": getattr(request, "sandbox_id", ""),
        "container.id": getattr(request, "id", ""),
        "kuasar.exec.id": getattr(request, "exec_id", ""),
    }
    return {name: str(value)[:200] for name, value in named.items() if value}
