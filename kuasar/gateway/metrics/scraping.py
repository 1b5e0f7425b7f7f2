"""One scrape: a copy of what the gateway knows, taken on its loop; then, in a thread, what the node shows and the text.

The loop is held up only while the copy is taken. Scrapes take turns, so that however many ask there is one thread.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from kuasar import __version__
from kuasar.bus.link import Link
from kuasar.core.errors import KuasarError
from kuasar.gateway.metrics import catalogue as c
from kuasar.gateway.metrics.exposition import render
from kuasar.gateway.metrics.node import look
from kuasar.gateway.metrics.sources import Sources
from kuasar.gateway.metrics.tallies import Values

_SUPERVISORD_SECONDS = 2.0
_LINK_STATES = ("alive", "dead", "expected", "suspended")
_UNDELIVERED = {
    "malformed": "malformed",
    "stale": "stale",
    "unasked": "unasked",
    "event_repeats": "repeated",
    "unroutable": "unroutable",
    "full": "full",
}
"""Counters of the router, and what they are called here."""


class Scraping:
    """Everything that is asked when somebody scrapes. Used on the gateway's loop."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._turn = asyncio.Lock()
        self._took = 0.0

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        """Text and content type, as ``accept`` prefers."""
        async with self._turn:
            sources, started = self._sources, time.monotonic()
            values = await self._workers()
            values |= self._known()
            engines = {each: sources.tallies.engine_of(each) for each in sources.directory.sandboxes}
            answer = await asyncio.to_thread(self._finish, values, engines, accept)
            self._took = time.monotonic() - started
            return answer

    def _finish(self, values: Values, engines: dict[str, str], accept: str) -> tuple[bytes, str]:
        return render(values | look(self._sources.config, engines), accept)

    async def _workers(self) -> Values:
        """What supervisord says; that it says nothing, if it does not answer."""
        try:
            async with asyncio.timeout(_SUPERVISORD_SECONDS):
                counts = await self._sources.supervision.counts()
        except (KuasarError, TimeoutError):
            return {c.SUPERVISORD_UP: {(): 0}}
        return {c.SUPERVISORD_UP: {(): 1}, c.WORKERS: {(state,): count for state, count in counts.items()}}

    def _known(self) -> Values:
        return {
            c.BUILD: {(__version__,): 1.0},
            c.RPC_IN_FLIGHT: {(): self._sources.in_flight.now},
            c.RPC_LIMIT: {(): self._sources.in_flight.limit},
            c.EVENTS_WAITING: {(): self._sources.publisher.pending},
            c.EVENTS_DELIVERED: {(): self._sources.publisher.delivered},
            c.EVENTS_DROPPED: {(): self._sources.publisher.dropped},
            c.SCRAPE: {(): self._took},
            **self._bus(self._sources.router.links),
            **self._traces(),
            **self._sources.tallies.values(),
        }

    def _traces(self) -> Values:
        outbox = self._sources.outbox
        if outbox is None or outbox.exporter is None:
            return {}
        return {c.TRACES: {("exported",): outbox.exporter.exported, ("dropped",): outbox.exporter.dropped}}

    def _bus(self, links: list[Link]) -> Values:
        counters = self._sources.router.counters
        states = Counter(dict.fromkeys(_LINK_STATES, 0))
        states.update(link.state for link in links)
        return {
            c.LINKS: {(state,): count for state, count in states.items()},
            c.SILENT: {(): sum(link.alive and link.silent for link in links)},
            c.PENDING: {(): sum(len(link.pending) for link in links)},
            c.PENDING_MOST: {(): max((len(link.pending) for link in links), default=0)},
            c.UNSENT: {(): sum(sum(1 for _ in link.unsent()) for link in links)},
            c.REQUESTS: {(): counters["requests"]},
            c.RESENT: {(): counters["resent"]},
            c.REPLIES: {(): counters["replies"]},
            c.EVENTS: {(): counters["events"]},
            c.DEATHS: {(): counters["deaths"]},
            c.DROPPED: {(word,): counters[name] for name, word in _UNDELIVERED.items()},
        }
