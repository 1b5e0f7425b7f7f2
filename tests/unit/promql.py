"""Takes PromQL apart: which metrics and labels an expression needs, and whether our catalogue has them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import promql_parser as ql

from kuasar.gateway.metrics.catalogue import ALL, Kind, Metric

_SCRAPED = {"instance", "job"}
"""Labels that Prometheus itself adds."""
FOREIGN = {
    "up",
    "process_open_fds",
    "process_max_fds",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
}
"""Metrics of Prometheus' and of its library's that may be named; an integration test looks whether they are there."""
_GRAFANA = re.compile(r"\$\w+|\$\{\w+\}")
_OVER_TIME = {"rate", "increase", "irate"}
_BY_NAME: dict[str, Metric] = {}
for _metric in ALL:
    if _metric.kind is Kind.HISTOGRAM:
        _BY_NAME |= dict.fromkeys((f"{_metric.name}_{part}" for part in ("bucket", "sum", "count")), _metric)
    else:
        _BY_NAME[_metric.name] = _metric


class Wrong(AssertionError):
    """What is wrong with an expression."""


def labels_of(expression: str) -> set[str]:
    """The labels that the result has, once everything in the expression is known to exist. Raises :class:`Wrong`."""
    text = expression.replace("$__rate_interval", "5m")
    return _labels(ql.parse(text), "")


def metrics_of(expression: str) -> set[str]:
    """The metrics of ours that it uses."""
    found = re.findall(r"\bkuasar_\w+", expression)
    return {_BY_NAME[name].name for name in found if name in _BY_NAME}


def _labels(node: ql.Expr, function: str) -> set[str]:
    if isinstance(node, ql.VectorSelector):
        return _selector(node, "")
    if isinstance(node, ql.MatrixSelector):
        return _selector(node.vector_selector, function)
    if isinstance(node, ql.AggregateExpr):
        return _aggregate(node)
    if isinstance(node, ql.Call):
        labels = set().union(*(_labels(argument, node.func.name) for argument in node.args))
        if node.func.name == "histogram_quantile":
            if "le" not in labels:
                raise Wrong("histogram_quantile without le")
            labels.discard("le")
        return labels
    if isinstance(node, ql.BinaryExpr):
        left, right = _labels(node.lhs, ""), _labels(node.rhs, "")
        if not _is_number(node.lhs) and not _is_number(node.rhs) and left != right and left and right:
            raise Wrong(f"nothing matches: {sorted(left)} on the left, {sorted(right)} on the right")
        return left or right
    if isinstance(node, ql.ParenExpr | ql.UnaryExpr):
        return _labels(node.expr, function)
    if isinstance(node, ql.NumberLiteral | ql.StringLiteral):
        return set()
    raise Wrong(f"not understood: {type(node).__name__}")


def _is_number(node: ql.Expr) -> bool:
    return isinstance(node, ql.NumberLiteral)


def _aggregate(node: ql.AggregateExpr) -> set[str]:
    below = _labels(node.expr, "")
    modifier = node.modifier
    if modifier is None:
        return set()
    named = set(modifier.labels)
    if named - below:
        raise Wrong(f"grouped by {sorted(named - below)}, which nothing has (there are: {sorted(below)})")
    return named if "By" in str(modifier.type) else below - named


def _selector(node: ql.VectorSelector, function: str) -> set[str]:
    name = node.name or ""
    if name in FOREIGN:
        return set(_SCRAPED)
    metric = _BY_NAME.get(name)
    if metric is None:
        raise Wrong(f"{name}: no such metric")
    growing = metric.kind is not Kind.GAUGE
    if growing != (function in _OVER_TIME):
        raise Wrong(f"{name}: a {metric.kind.value} {'without' if growing else 'in'} {function or 'a rate'}")
    labels = set(metric.labels) | _SCRAPED
    if name.endswith("_bucket"):
        labels.add("le")
    for matcher in node.matchers.matchers:
        _match(metric, labels, matcher)
    return labels


def _match(metric: Metric, labels: set[str], matcher: ql.Matcher) -> None:
    if matcher.name not in labels:
        raise Wrong(f"{metric.name} has no label {matcher.name!r} (it has: {sorted(labels)})")
    if matcher.name in _SCRAPED or _GRAFANA.fullmatch(matcher.value):
        return
    for value in _values(matcher):
        if not re.search(rf"\b{re.escape(value)}\b", metric.help) and value not in KNOWN.get(matcher.name, ()):
            raise Wrong(f"{metric.name}: {matcher.name}={value!r} is not documented")


def _values(matcher: ql.Matcher) -> Iterator[str]:
    yield from matcher.value.split("|") if "Re" in str(matcher.op) else [matcher.value]


KNOWN: dict[str, set[str]] = {}
"""Values of labels that are defined elsewhere; filled by the test."""
