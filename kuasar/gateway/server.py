"""From gRPC to services: every method of a service description is served by the service's method of that name.

A service is a plain object with ``async def Name(self, request, call) -> response``; it knows nothing of gRPC, so that
another transport can serve it too. Here are the things that every call needs: the limit on requests in flight, the
caller's namespace and deadline, and the translation of errors.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from kuasar.core import log
from kuasar.core.errors import InvalidArgument, KuasarError, ResourceExhausted, wrap
from kuasar.core.ids import require_id
from kuasar.gateway.status import code_of

NAMESPACE_KEY = "containerd-namespace"
_UNLIMITED = frozenset({"Wait"})
"""Methods that may stay open as long as a sandbox lives, and so do not count as in flight."""


@dataclass(frozen=True)
class Call:
    """What a service knows of the call beside its request."""

    namespace: str
    """containerd's namespace of the caller."""
    deadline: float | None
    """On CLOCK_MONOTONIC; None: the caller waits for ever."""


Method = Callable[[Any, Call], Awaitable[Any]]


class InFlight:
    """How many requests are being answered, and how many may be."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.now = 0

    def __enter__(self) -> None:
        if self.now >= self.limit:
            raise ResourceExhausted(f"{self.now} requests are in flight, which is the limit; try again")
        self.now += 1

    def __exit__(self, *_: object) -> None:
        self.now -= 1


def handlers_for(description: ServiceDescriptor, service: object, in_flight: InFlight) -> grpc.GenericRpcHandler:
    """The gRPC handlers of ``service``, which must have a coroutine method for each method of ``description``."""
    handlers = {
        method.name: grpc.unary_unary_rpc_method_handler(
            _guarded(f"{description.name}.{method.name}", getattr(service, method.name), in_flight),
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
        for method in description.methods
    }
    return grpc.method_handlers_generic_handler(description.full_name, handlers)


def _guarded(name: str, method: Method, in_flight: InFlight) -> Callable[[Any, Any], Awaitable[Any]]:
    limited = name.rpartition(".")[2] not in _UNLIMITED

    async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        started = time.monotonic()
        try:
            call = _call_of(context)
            if not limited:
                return await method(request, call)
            with in_flight:
                response = await method(request, call)
        except Exception as exc:
            error = wrap(exc, name)
            if not isinstance(exc, KuasarError):
                log.error("unexpected error", method=name, error=repr(exc))
            log.info("refused", method=name, kind=error.kind, error=error.message)
            await context.abort(code_of(error), error.message)
        log.debug("answered", method=name, ms=round((time.monotonic() - started) * 1000, 1))
        return response

    return handle


def _call_of(context: grpc.aio.ServicerContext[Any, Any]) -> Call:
    metadata = {str(key): value for key, value in context.invocation_metadata() or ()}
    namespace = metadata.get(NAMESPACE_KEY)
    if not namespace:
        raise InvalidArgument(f"metadata {NAMESPACE_KEY}: missing", field=NAMESPACE_KEY)
    remaining = context.time_remaining()
    return Call(
        namespace=require_id(namespace, NAMESPACE_KEY),
        # gRPC gives a time of years to callers without a deadline.
        deadline=None if remaining is None or remaining > 1e7 else time.monotonic() + remaining,
    )
