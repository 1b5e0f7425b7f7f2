"""Brings the metrics up and down with the gateway. A thread loads the libraries, when tasks are served already."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from kuasar.core import log
from kuasar.core.errors import Unavailable
from kuasar.gateway.metrics.sources import Sources

if TYPE_CHECKING:
    from kuasar.gateway.metrics.scraping import Scraping
    from kuasar.gateway.metrics.server import MetricsServer


@asynccontextmanager
async def serve_metrics(listen: str, sources: Sources) -> AsyncIterator[None]:
    """Serve them while entered. Where that is not possible it is logged and nothing else: no pod may depend on it."""
    scraping_kind, server_kind = await asyncio.to_thread(_load)
    server = server_kind(listen, scraping_kind(sources).scrape)
    try:
        await server.start()
        log.info("metrics", listen=listen)
    except Unavailable as exc:
        log.error("there are no metrics", error=exc)
    try:
        yield
    finally:
        await server.close()


def _load() -> tuple[type[Scraping], type[MetricsServer]]:
    from kuasar.gateway.metrics.scraping import Scraping
    from kuasar.gateway.metrics.server import MetricsServer

    return Scraping, MetricsServer
