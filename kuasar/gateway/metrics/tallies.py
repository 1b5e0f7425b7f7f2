"""What the gateway counts while it works. Used on its loop only; loads no library, and one count costs a microsecond.

Counters begin with the gateway: Prometheus knows what to make of a counter that begins again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kuasar.gateway.metrics import catalogue as c
from kuasar.gateway.metrics.catalogue import Metric

Labels = tuple[str, ...]
UNKNOWN = "unknown"


@dataclass(slots=True)
class Histogram:
    """How often a value was how large; ``counts`` has one more entry than there are bounds."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def copy(self) -> Histogram:
        """As it is now."""
        return Histogram(self.bounds, list(self.counts), self.total)


Value = float | Histogram
Values = dict[Metric, dict[Labels, Value]]
"""Of each metric, by the values of its labels."""


class Tallies:
    """One per gateway that has metrics. ``engine_of`` gives the engine of a sandbox, :data:`UNKNOWN` if it is not
    known."""

    def __init__(self, engine_of: Callable[[str], str]) -> None:
        self.engine_of = engine_of
        self._counters: dict[Metric, dict[Labels, float]] = {}
        self._histograms: dict[Metric, dict[Labels, Histogram]] = {}
        self._generations: dict[str, int] = {}

    def values(self) -> Values:
        """A copy of everything, as it is now."""
        found: Values = {metric: dict(counts) for metric, counts in self._counters.items()}
        for metric, histograms in self._histograms.items():
            found[metric] = {labels: each.copy() for labels, each in histograms.items()}
        return found

    # -- what happens --------------------------------------------------------------------------------------------------

    def answered(self, method: str, seconds: float | None, error: str) -> None:
        """A request was answered (with an ``error`` of that kind, unless empty); without ``seconds`` it was a wait."""
        if seconds is not None:
            self._observe(c.RPC, (method,), seconds)
        if error:
            self._count(c.RPC_ERRORS, (method, error))

    def started(self, sandbox: str, seconds: float, reply: Mapping[str, Any]) -> None:
        """A sandbox has been started; ``reply`` is what the bus says of it."""
        engine, path = self.engine_of(sandbox), str(reply.get("path") or UNKNOWN)
        self._observe(c.START, (engine, path), seconds)
        for name, milliseconds in reply["phases"]:
            self._observe(c.PHASE, (engine, path, name), milliseconds / 1000)
        if reply.get("template"):
            self._count(c.TEMPLATE_STARTS, (engine, str(reply["template"])))

    def start_failed(self, sandbox: str, error: str) -> None:
        """It has not, for an error of that kind."""
        self._count(c.START_FAILURES, (self.engine_of(sandbox), error))

    def greeted(self, sandbox: str, generation: int) -> None:
        """A worker has greeted. What happened before this gateway lived does not count."""
        known = self._generations.get(sandbox)
        if known is not None and generation > known:
            self._count(c.RESTARTS, (self.engine_of(sandbox),))
        self._generations[sandbox] = generation

    def removed(self, sandbox: str) -> None:
        """The sandbox is gone; harmless when unknown."""
        self._generations.pop(sandbox, None)

    def told(self, sandbox: str, topic: str, body: Mapping[str, Any]) -> None:
        """A worker has told of something, for the first time."""
        engine = self.engine_of(sandbox)
        if topic == "task.exit":
            for stream in ("stdout", "stderr"):
                self._count(c.STDIO, (engine, stream), body.get(f"{stream}_bytes", 0))
        elif topic == "task.oom":
            self._count(c.OOMS, (engine,))
        elif topic == "sandbox.exit":
            self._count(c.ENDS, (engine, "died" if body["exit_status"] else "stopped"))

    def _count(self, metric: Metric, labels: Labels, by: float = 1) -> None:
        counts = self._counters.setdefault(metric, {})
        counts[labels] = counts.get(labels, 0) + by

    def _observe(self, metric: Metric, labels: Labels, value: float) -> None:
        histograms = self._histograms.get(metric)
        if histograms is None:
            histograms = self._histograms[metric] = {}
        histogram = histograms.get(labels)
        if histogram is None:
            histogram = histograms[labels] = Histogram(metric.bounds)
        histogram.observe(value)
