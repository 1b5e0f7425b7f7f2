"""Names and labels follow Prometheus' conventions, and the page says what the code says."""

from __future__ import annotations

import re

import pytest

from kuasar.gateway.metrics.catalogue import ALL, Kind, Metric
from scripts.metrics_reference import PAGE, reference, whole

UNBOUNDED = {"sandbox", "container", "pod", "id", "uid", "pid", "namespace", "name", "image"}


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"kuasar_[a-z]+(_[a-z]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert bool(metric.bounds) == (metric.kind is Kind.HISTOGRAM)
    assert list(metric.bounds) == sorted(set(metric.bounds))
    if metric.kind is Kind.HISTOGRAM:
        assert metric.name.endswith("_seconds")
    assert not re.search(r"_(ms|milliseconds|kb|kib|mib|minutes)(_|$)", metric.name)
    assert not UNBOUNDED & set(metric.labels)
    assert metric.help.endswith(".")


def test_names_are_used_once() -> None:
    assert len({metric.name for metric in ALL}) == len(ALL)


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert whole(text) == text, "run: python -m scripts.metrics_reference"


def test_every_metric_is_on_the_page() -> None:
    text = reference()
    assert all(f"| `{metric.name}` | {metric.kind.value} |" in text for metric in ALL)
