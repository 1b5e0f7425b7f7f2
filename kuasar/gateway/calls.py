"""What every transport needs of a call: the service's methods, the caller's namespace and deadline, the limits.

A service is a plain object with ``async def Name(self, request, call) -> response`` for each method of its protobuf
description; it knows nothing of gRPC or ttrpc. The two transports (``grpc_server.py``, ``ttrpc_server.py``) look
methods up here and answer errors as ``status.py`` says.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from kuasar.core import log
from kuasar.core.errors import InvalidArgument, KuasarError, ResourceExhausted, wrap
from kuasar.core.ids import require_id
from kuasar.gateway.metrics.tallies import Tallies
from kuasar.gateway.tracing.requests import Tracer

_about: ContextVar[dict[str, str] | None] = ContextVar("about", default=None)
_OPEN_ENDED = frozenset({"Wait"})
"""Methods that may stay open as long as a sandbox lives, and so do not count as in flight."""


_GIVEN_UP = "cancelled"
"""Instead of an error's kind: the caller has gone away."""


class Durable(Protocol):
    """A call that is written down, so that a successor of this gateway makes it again if we die before it is
    answered."""

    key: str
    """Of what it changes; a repetition has the same. One change per call."""
    repeated: bool
    """A predecessor may have begun it, and carried it out."""

    def sandbox_of(self, container: str) -> str:
        """The sandbox of ``namespace/id`` as a predecessor found it; empty if it did not."""
        ...

    def bind(self, container: str, sandbox: str) -> None:
        """Write down which sandbox a container is in, before anything is changed there."""
        ...

    def when_answered(self, done: Callable[[], None]) -> None:
        """Call ``done`` once the answer is safe, so that nobody will ask again."""
        ...


@dataclass(frozen=True)
class Call:
    """What a service knows of the call beside its request."""

    namespace: str
    """containerd's namespace of the caller."""
    deadline: float | None
    """On CLOCK_MONOTONIC; None: the caller waits for ever."""
    durable: Durable | None = None
    """None: the call ends with this gateway, and its caller repeats it."""

    @property
    def repeated(self) -> bool:
        """Whether it may have been carried out before, for a predecessor of this gateway."""
        return self.durable is not None and self.durable.repeated


class InFlight:
    """How many requests are being answered, and how many may be; one for all transports."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.now = 0

    def __enter__(self) -> None:
        if self.now >= self.limit:
            raise ResourceExhausted(f"{self.now} requests are in flight, which is the limit; try again")
        self.now += 1

    def __exit__(self, *_: object) -> None:
        self.now -= 1


@dataclass(frozen=True)
class Method:
    """One method of a service, with its message classes."""

    name: str
    """``Service.Method``, for the log."""
    function: Callable[[Any, Call], Awaitable[Any]]
    request: type[Message]
    response: type[Message]
    in_flight: InFlight
    tallies: Tallies | None = None
    """None: nothing is counted."""
    tracer: Tracer | None = None
    """None: nothing is traced."""

    @property
    def open_ended(self) -> bool:
        """Whether it may stay open for as long as a sandbox lives."""
        return self.name.rpartition(".")[2] in _OPEN_ENDED

    async def __call__(
        self,
        request: Any,
        metadata: Mapping[str, str],
        key: str,
        deadline: float | None,
        durable: Durable | None = None,
    ) -> Any:
        """Answer one request. ``key`` is the metadata that names the namespace. Raises only :class:`KuasarError`."""
        if self.tracer is None or self.open_ended:
            return await self._answer(request, metadata, key, deadline, durable)
        with self.tracer.request(self.name, metadata, request):
            return await self._answer(request, metadata, key, deadline, durable)

    async def _answer(
        self, request: Any, metadata: Mapping[str, str], key: str, deadline: float | None, durable: Durable | None
    ) -> Any:
        started, failure = time.monotonic(), _GIVEN_UP
        _about.set({"request": durable.key} if durable is not None else {})
        try:
            call = Call(_namespace_of(metadata, key), deadline, durable)
            if self.open_ended:
                answer = await self.function(request, call)
            else:
                with self.in_flight:
                    answer = await self.function(request, call)
            failure = ""
            return answer
        except Exception as exc:
            error = wrap(exc, self.name)
            failure = error.kind
            if not isinstance(exc, KuasarError):
                log.error("unexpected error", method=self.name, error=repr(exc))
            log.info("refused", method=self.name, kind=error.kind, error=error.message)
            raise error from exc
        finally:
            if self.tallies is not None:
                self.tallies.answered(self.name, None if self.open_ended else time.monotonic() - started, failure)
            if log.enabled("debug"):
                log.debug("answered", method=self.name, ms=round((time.monotonic() - started) * 1000, 1))


def about() -> dict[str, str] | None:
    """What the call that is being answered here is about, as far as it is known: for the log, and to be completed by
    who finds out more."""
    return _about.get()


def methods_of(
    description: ServiceDescriptor,
    service: object,
    in_flight: InFlight,
    tallies: Tallies | None = None,
    tracer: Tracer | None = None,
) -> dict[str, Method]:
    """The methods of ``service`` by name; it must have a coroutine method for each method of ``description``."""
    return {
        method.name: Method(
            f"{description.name}.{method.name}",
            getattr(service, method.name),
            GetMessageClass(method.input_type),
            GetMessageClass(method.output_type),
            in_flight,
            tallies,
            tracer,
        )
        for method in description.methods
    }


def _namespace_of(metadata: Mapping[str, str], key: str) -> str:
    namespace = metadata.get(key)
    if not namespace:
        raise InvalidArgument(f"metadata {key}: missing", field=key)
    return require_id(namespace, key)
