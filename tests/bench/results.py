"""The samples of one run and what follows from them: quantiles, ratios, verdicts."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.bench.contestants import Contestant
from tests.bench.metrics import COMPARISONS, METRICS, TARGETS, Comparison, Metric, Target, metric_of


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
    samples: dict[str, dict[Contestant, list[float]]] = field(default_factory=lambda: defaultdict(dict))
    phases: dict[str, list[dict[str, float]]] = field(default_factory=lambda: defaultdict(list))
    """Of our runc engine by network, of machines by contestant: a map for each start, phase to milliseconds."""
    details: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """Sections that failed to run; anything here makes the exit code 1."""

    def add(self, key: str, who: Contestant, *values: float) -> None:
        """Keep samples of a metric; there may be none."""
        if not values:
            return
        self.samples[metric_of(key).key].setdefault(who, []).extend(values)

    def keep_memory(self, key: str, who: Contestant, pods: int, roles: dict[str, float]) -> None:
        """Keep by which processes the memory of ``pods`` pods is used: role to MiB per pod."""
        self.details.setdefault(key, {}).setdefault(who.name, {})[str(pods)] = roles

    def of(self, key: str, who: Contestant) -> list[float]:
        """The samples; empty if there are none."""
        return self.samples[key].get(who, []) if key in self.samples else []

    def median(self, key: str, who: Contestant) -> float | None:
        """The p50, or None without samples."""
        values = self.of(key, who)
        return statistics.median(values) if values else None

    def ratio(self, key: str, who: Contestant, base: Contestant) -> float | None:
        """The median of ``who`` over that of ``base``."""
        ours, theirs = self.median(key, who), self.median(key, base)
        return None if ours is None or not theirs else ours / theirs

    def measured(self, comparison: Comparison | None = None) -> list[Metric]:
        """The metrics that have samples, in the order of the table: all, or those of one comparison of which somebody
        who is looked at has some."""
        if comparison is None:
            return [metric for metric in METRICS if any(self.samples.get(metric.key, {}).values())]
        return [metric_of(key) for key in comparison.metrics if any(self.of(key, who) for who in comparison.who)]

    def verdicts(self) -> list[Verdict]:
        """One for every promise whose numbers were measured."""
        judged = (self._judge(target) for target in TARGETS)
        return [verdict for verdict in judged if verdict is not None]

    def _judge(self, target: Target) -> Verdict | None:
        metric = metric_of(target.metric)
        if target.base is None:
            value, bound, unit = self.median(metric.key, target.who), target.limit, f" {metric.unit}"
        else:
            value, bound, unit = self.ratio(metric.key, target.who, target.base), target.ratio, "x"
        if value is None or bound is None:
            return None
        met = value >= bound if metric.more_is_better else value <= bound
        word = "at least" if metric.more_is_better else "at most"
        missed = "" if met else f"{abs(value - bound):.2f}{unit} ({abs(value / bound - 1):.0%})"
        return Verdict(target, f"{word} {bound:.3g}{unit}", f"{value:.2f}{unit}", met, missed)

    def to_json(self) -> dict[str, Any]:
        """Plain data; every sample is in it."""
        return {
            "facts": self.facts,
            "metrics": {
                metric.key: {
                    "title": metric.title,
                    "unit": metric.unit,
                    "ratios": self._ratios(metric.key),
                    "who": {
                        who.name: {
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
                {
                    "metric": v.target.metric,
                    "who": v.target.who.name,
                    "wanted": v.wanted,
                    "got": v.got,
                    "met": v.met,
                    "missed_by": v.missed_by,
                }
                for v in self.verdicts()
            ],
            "phases": dict(self.phases),
            "details": self.details,
            "problems": self.problems,
        }

    def _ratios(self, key: str) -> dict[str, float]:
        pairs = [(who, each.base) for each in COMPARISONS if key in each.metrics for who in each.who]
        found = {f"{who.name}/{base.name}": self.ratio(key, who, base) for who, base in pairs}
        return {pair: ratio for pair, ratio in found.items() if ratio is not None}
