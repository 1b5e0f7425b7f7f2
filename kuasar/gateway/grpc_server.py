"""Services over gRPC: the Sandbox API, and the Task API for those who want it."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from kuasar.core.config import Config
from kuasar.core.errors import KuasarError
from kuasar.gateway.calls import Method
from kuasar.gateway.status import Code, code_of

NAMESPACE_KEY = "containerd-namespace"
_STATUS = {code: grpc.StatusCode[code.name] for code in Code}
_FOREVER_SECONDS = 1e7
"""gRPC reports a remaining time of years for a caller that set no deadline."""


def grpc_status(error: KuasarError) -> grpc.StatusCode:
    """gRPC's own name of the code of ``error``."""
    return _STATUS[code_of(error)]


def make_server(
    config: Config, services: dict[str, dict[str, Method]], others: Iterable[grpc.GenericRpcHandler] = ()
) -> grpc.aio.Server:
    """A server of ``services`` (methods by full service name) and ``others``, bound to the configured socket but not
    started.

    What lies at the socket's path is dead: the caller holds the gateway's lock.
    """
    limit = config.gateway.max_message_bytes
    options = [
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((*(_handlers(name, methods) for name, methods in services.items()), *others))
    path = config.gateway.socket
    if os.path.exists(path):
        os.unlink(path)
    server.add_insecure_port(f"unix:{path}")
    os.chmod(path, 0o600)
    return server


def _handlers(name: str, methods: dict[str, Method]) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        name,
        {
            method_name: grpc.unary_unary_rpc_method_handler(
                _handler(method),
                response_serializer=method.response.SerializeToString,
            )
            for method_name, method in methods.items()
        },
    )


def _handler(method: Method) -> Callable[[Any, Any], Awaitable[Any]]:
    # The bytes are decoded here: gRPC itself would answer what does not decode with UNKNOWN.
    async def handle(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        metadata = {str(key): str(value) for key, value in context.invocation_metadata() or ()}
        remaining = context.time_remaining()
        try:
            message = method.request.FromString(request)
        except DecodeError as exc:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{method.name}: the request does not decode: {exc}")
        endless = remaining is None or remaining > _FOREVER_SECONDS
        deadline = None if endless else time.monotonic() + (remaining or 0.0)
        try:
            return await method(message, metadata, NAMESPACE_KEY, deadline)
        except KuasarError as exc:
            await context.abort(grpc_status(exc), exc.message)

    return handle
