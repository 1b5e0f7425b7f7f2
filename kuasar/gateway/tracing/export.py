"""Sends finished traces to a collector: OTLP over HTTP, protobuf, from a thread of its own.

The loop only puts a trace into a bounded queue. A collector that is away is tried again with growing pauses; what does
not fit into the queue meanwhile is dropped, oldest first, and counted: nobody waits for a collector.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from kuasar import __version__
from kuasar.core import log
from kuasar.core.spans import Spans
from kuasar.gateway.tracing.requests import NO_PARENT, Finished

MOST_WAITING = 2048
"""Traces."""
MOST_AT_A_TIME = 64
_GATHER_SECONDS = 1.0
"""Traces that end within this time go together."""
_CALL_SECONDS = 10.0
_END_SECONDS = 2.0
_PAUSES = (1.0, 30.0)
_AGAIN = frozenset({429, 502, 503, 504})
"""What a collector says that may take it later (OTLP specification)."""


class Exporter:
    """Sends to ``endpoint`` from :meth:`start` to :meth:`close`."""

    def __init__(
        self, endpoint: str, pauses: tuple[float, float] = _PAUSES, gather_seconds: float = _GATHER_SECONDS
    ) -> None:
        self._endpoint = urlsplit(endpoint)
        self._pauses = pauses
        self._gather_seconds = gather_seconds
        self._waiting: deque[Finished] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self.exported = 0
        self.dropped = 0
        """Traces."""

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def put(self, trace: Finished) -> None:
        """Have it sent. Never waits."""
        with self._wake:
            if len(self._waiting) == MOST_WAITING:
                self._waiting.popleft()
                self._drop(1, "too many wait")
            self._waiting.append(trace)
            self._wake.notify()

    def close(self) -> None:
        """Send what waits, if the collector takes it at once, and end. One that hangs is not waited for."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(_END_SECONDS)

    def _run(self) -> None:
        pause, longest = self._pauses
        while (batch := self._next()) is not None:
            while not self._send(batch):
                with self._wake:
                    if self._wake.wait_for(lambda: self._closing, pause):
                        self._drop(len(batch) + len(self._waiting), "the gateway ends")
                        return
                pause = min(2 * pause, longest)
            pause = self._pauses[0]

    def _next(self) -> list[Finished] | None:
        """Some traces; None at the end."""
        with self._wake:
            self._wake.wait_for(lambda: self._waiting or self._closing)
            if not self._closing:  # else each would go alone
                self._wake.wait_for(lambda: self._closing or len(self._waiting) >= MOST_AT_A_TIME, self._gather_seconds)
            if not self._waiting:
                return None
            return [self._waiting.popleft() for _ in range(min(MOST_AT_A_TIME, len(self._waiting)))]

    def _send(self, batch: list[Finished]) -> bool:
        """Whether it is done with: taken, or refused for good."""
        try:
            status = self._post(encode(batch).SerializeToString())
        except (OSError, http.client.HTTPException) as exc:
            log.info("the collector of traces is away, trying again", error=exc)
            return False
        if status in _AGAIN:
            log.info("the collector of traces is busy, trying again", status=status)
            return False
        if 200 <= status < 300:
            self.exported += len(batch)
        else:
            self._drop(len(batch), f"the collector answers {status}")
        return True

    def _post(self, body: bytes) -> int:
        secure = self._endpoint.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(self._endpoint.hostname or "", self._endpoint.port, timeout=_CALL_SECONDS)
        try:
            connection.request("POST", self._endpoint.path or "/", body, {"Content-Type": "application/x-protobuf"})
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    def _drop(self, traces: int, why: str) -> None:
        before, self.dropped = self.dropped, self.dropped + traces
        if before.bit_length() != self.dropped.bit_length():  # 1, 2, 4, 8 …
            log.warning("traces dropped", why=why, dropped=self.dropped)


def encode(traces: Iterable[Finished]) -> ExportTraceServiceRequest:
    """One message, the spans sorted by the process that has recorded them."""
    by_process: dict[str, list[Span]] = {}
    for trace in traces:
        for process, span in _spans(trace):
            by_process.setdefault(process, []).append(span)
    scope = InstrumentationScope(name="kuasar", version=__version__)
    return ExportTraceServiceRequest(
        resource_spans=[
            ResourceSpans(resource=_resource(process), scope_spans=[ScopeSpans(scope=scope, spans=spans)])
            for process, spans in by_process.items()
        ]
    )


def _resource(process: str) -> Resource:
    values = {"service.name": f"kuasar-{process}", "service.version": __version__, "host.name": socket.gethostname()}
    return Resource(attributes=_attributes(values))


def _spans(trace: Finished) -> Iterator[tuple[str, Span]]:
    servers = {number for number in trace.spans if _asked_elsewhere(trace.spans, number)}
    clients = {trace.spans[number][1] for number in servers}
    common = _attributes(trace.attributes)
    for number, (name, parent, start, end, process, attributes, error) in trace.spans.items():
        kind = Span.SPAN_KIND_INTERNAL
        if number in servers:
            kind = Span.SPAN_KIND_SERVER
        elif number in clients:
            kind = Span.SPAN_KIND_CLIENT
        yield (
            process,
            Span(
                trace_id=bytes.fromhex(trace.id),
                span_id=bytes.fromhex(number),
                parent_span_id=b"" if parent == NO_PARENT else bytes.fromhex(parent),
                name=name,
                kind=kind,
                start_time_unix_nano=start,
                end_time_unix_nano=end,
                attributes=[*common, *_attributes(attributes)] if attributes else common,
                status=Status(code=Status.STATUS_CODE_ERROR, message=error) if error else None,
            ),
        )


def _asked_elsewhere(spans: Spans, number: str) -> bool:
    """Whether the span that asked is not of the same process; containerd's is not among these."""
    parent = spans.get(spans[number][1])
    return parent is None or parent[4] != spans[number][4]


def _attributes(values: dict[str, str]) -> list[KeyValue]:
    return [KeyValue(key=name, value=AnyValue(string_value=value)) for name, value in values.items()]
