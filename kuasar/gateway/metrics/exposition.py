"""From values to the text that Prometheus reads, by its own library: the only module that knows it."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector, CollectorRegistry

from kuasar.gateway.metrics.catalogue import Kind, Metric
from kuasar.gateway.metrics.tallies import Histogram, Value, Values


class _Given(Collector):
    """What has been collected already."""

    def __init__(self, values: Values) -> None:
        self._values = values

    def collect(self) -> Iterator[Family]:
        for metric, samples in self._values.items():
            family = _family(metric)
            for labels, value in sorted(samples.items()):
                _add(family, labels, value)
            yield family

    def describe(self) -> list[Family]:
        return []


def render(values: Values, accept: str) -> tuple[bytes, str]:
    """Text and content type, in the format that the ``Accept`` header prefers. The gateway's own process is told by the
    library's ``process_*`` metrics."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Given(values))
    ProcessCollector(registry=registry)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def _family(metric: Metric) -> CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily:
    if metric.kind is Kind.COUNTER:
        return CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
    if metric.kind is Kind.GAUGE:
        return GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    return HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)


def _add(family: Family, labels: tuple[str, ...], value: Value) -> None:
    if isinstance(family, HistogramMetricFamily):
        assert isinstance(value, Histogram)
        buckets, sofar = [], 0
        for bound, count in zip((*value.bounds, float("inf")), value.counts, strict=True):
            sofar += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), float(sofar)))
        family.add_metric(labels, buckets, value.total)
    elif isinstance(family, CounterMetricFamily | GaugeMetricFamily):
        assert not isinstance(value, Histogram)
        family.add_metric(labels, value)
