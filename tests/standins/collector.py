"""Stands in for an OpenTelemetry collector: takes OTLP over HTTP, decodes the real messages, remembers the spans."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

PATH = "/v1/traces"


@dataclass(frozen=True)
class Seen:
    """One span."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    """Empty: none."""
    kind: int
    start: int
    end: int
    attributes: dict[str, str]
    error: str
    """Empty: none."""


class Collector:
    """Listens on a port of its own; ``status`` is what it answers. One request at a time, a connection each: no thread
    but one."""

    def __init__(self, port: int = 0) -> None:
        self.status = 200
        self.requests = 0
        self._spans: list[Seen] = []
        self._lock = threading.Lock()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 5.0

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = collector._take(self.path, self.headers["Content-Type"], body)
                self.send_response(collector.status)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Where to send to."""
        return f"http://127.0.0.1:{self._server.server_port}{PATH}"

    @property
    def base(self) -> str:
        """The same without the path, as ``OTEL_EXPORTER_OTLP_ENDPOINT`` wants it."""
        return self.endpoint.removesuffix(PATH)

    @property
    def spans(self) -> list[Seen]:
        """All so far."""
        with self._lock:
            return list(self._spans)

    def trace(self, identity: str) -> list[Seen]:
        """Those of one trace, by their start."""
        return sorted((span for span in self.spans if span.trace == identity), key=lambda span: span.start)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _take(self, path: str, content_type: str, body: bytes) -> bytes:
        assert (path, content_type) == (PATH, "application/x-protobuf")
        request = ExportTraceServiceRequest.FromString(body)
        with self._lock:
            self.requests += 1
            if self.status == 200:
                self._spans += _spans(request)
        return ExportTraceServiceResponse().SerializeToString()


def _spans(request: ExportTraceServiceRequest) -> Iterator[Seen]:
    for group in request.resource_spans:
        service = _values(group.resource.attributes)["service.name"]
        for scope in group.scope_spans:
            for span in scope.spans:
                yield Seen(
                    service,
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.kind,
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    _values(span.attributes),
                    span.status.message if span.status.code == span.status.STATUS_CODE_ERROR else "",
                )


def _values(attributes: Iterable[KeyValue]) -> dict[str, str]:
    return {entry.key: entry.value.string_value for entry in attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector while entered."""
    collector = Collector()
    try:
        yield collector
    finally:
        collector.close()
