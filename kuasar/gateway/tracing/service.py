"""Brings the export of traces up and down with the gateway. A thread loads the library, when tasks are served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from kuasar.core import log
from kuasar.gateway.tracing.requests import Finished

if TYPE_CHECKING:
    from kuasar.gateway.tracing.export import Exporter

_MOST_EARLY = 256


class Outbox:
    """Where finished traces go. Before there is an exporter they wait here: the first requests are often a
    predecessor's."""

    def __init__(self) -> None:
        self.exporter: Exporter | None = None
        self._early: deque[Finished] = deque(maxlen=_MOST_EARLY)

    def put(self, trace: Finished) -> None:
        """Have it sent."""
        if self.exporter is None:
            self._early.append(trace)
        else:
            self.exporter.put(trace)

    def open(self, exporter: Exporter) -> None:
        """From now on ``exporter`` gets them."""
        self.exporter = exporter
        while self._early:
            exporter.put(self._early.popleft())


@asynccontextmanager
async def export_traces(endpoint: str, outbox: Outbox) -> AsyncIterator[None]:
    """Send what comes into ``outbox`` while entered."""
    kind = await asyncio.to_thread(_load)
    exporter = kind(endpoint)
    exporter.start()
    outbox.open(exporter)
    log.info("traces", endpoint=endpoint)
    try:
        yield
    finally:
        await asyncio.to_thread(exporter.close)


def _load() -> type[Exporter]:
    from kuasar.gateway.tracing.export import Exporter

    return Exporter
