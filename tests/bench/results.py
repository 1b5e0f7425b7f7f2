"""The samples of one run and what follows from them: quantiles, ratios, verdicts."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.bench.metrics import METRICS, TARGETS, Metric, Target, Who, metric_of


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the samples lie, interpolated; the samples must not be empty."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True)
class Verdict:
    """Whether a promise was kept, and by how much not."""

    target: Target
    wanted: str
    got: str
    met: bool
    missed_by: str = ""


@dataclass
class Results:
    """Everything that goes into results.json."""

    facts: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, dict[Who, list[float]]] = field(default_factory=lambda: defaultdict(dict))
    phases: dict[str, list[dict[str, float]]] = field(default_factory=lambda: defaultdict(list))
    """Per network, one map for each start of ours: phase to milliseconds, in order."""
    details: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """Sections that failed to run; anything here makes the exit code 1."""

    def add(self, key: str, who: Who, *values: float) -> None:
        """Keep samples of a metric."""
        self.samples[metric_of(key).key].setdefault(who, []).extend(values)

    def of(self, key: str, who: Who) -> list[float]:
        """The samples; empty if there are none."""
        return self.samples[key].get(who, []) if key in self.samples else []

    def median(self, key: str, who: Who) -> float | None:
        """The p50, or None without samples."""
        values = self.of(key, who)
        return statistics.median(values) if values else None

    def ratio(self, key: str) -> float | None:
        """Our median over the shim's."""
        ours, shim = self.median(key, "ours"), self.median(key, "shim")
        return None if ours is None or not shim else ours / shim

    def measured(self) -> list[Metric]:
        """The metrics that have samples, in the order of the table."""
        return [metric for metric in METRICS if any(self.samples.get(metric.key, {}).values())]

    def verdicts(self) -> list[Verdict]:
        """One for every promise whose numbers were measured."""
        judged = (self._judge(target) for target in TARGETS)
        return [verdict for verdict in judged if verdict is not None]

    def _judge(self, target: Target) -> Verdict | None:
        metric = metric_of(target.metric)
        relative = target.ratio is not None
        value = self.ratio(metric.key) if relative else self.median(metric.key, "ours")
        bound = target.ratio if relative else target.limit
        unit = "x" if relative else f" {metric.unit}"
        if value is None or bound is None:
            return None
        met = value >= bound if metric.more_is_better else value <= bound
        word = "at least" if metric.more_is_better else "at most"
        missed = "" if met else f"{abs(value - bound):.2f}{unit} ({abs(value / bound - 1):.0%})"
        return Verdict(target, f"{word} {bound:g}{unit}", f"{value:.2f}{unit}", met, missed)

    def to_json(self) -> dict[str, Any]:
        """Plain data; every sample is in it."""
        return {
            "facts": self.facts,
            "metrics": {
                metric.key: {
                    "title": metric.title,
                    "unit": metric.unit,
                    "ratio": self.ratio(metric.key),
                    "who": {
                        who: {
                            "n": len(values),
                            "p50": quantile(values, 0.5),
                            "p95": quantile(values, 0.95),
                            "p99": quantile(values, 0.99),
                            "max": max(values),
                            "samples": [round(value, 3) for value in values],
                        }
                        for who, values in self.samples[metric.key].items()
                    },
                }
                for metric in self.measured()
            },
            "targets": [
                {"metric": v.target.metric, "wanted": v.wanted, "got": v.got, "met": v.met, "missed_by": v.missed_by}
                for v in self.verdicts()
            ],
            "phases": dict(self.phases),
            "details": self.details,
            "problems": self.problems,
        }
