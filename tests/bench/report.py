"""The outcome of a run as files and on the screen."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from tests.bench.metrics import COMPARISONS, Comparison, Metric, metric_of
from tests.bench.pictures import draw
from tests.bench.results import Results, quantile


def write(results: Results, directory: str) -> None:
    """results.json, the pictures and README.md."""
    os.makedirs(directory, exist_ok=True)
    with open(f"{directory}/results.json", "w", encoding="utf-8") as file:
        json.dump(results.to_json(), file, indent=1)
        file.write("\n")
    pictures = draw(results, directory)
    with open(f"{directory}/README.md", "w", encoding="utf-8") as file:
        file.write("\n".join(_markdown(results, pictures)) + "\n")


def show(results: Results, console: Console) -> None:
    """The tables, and what was missed by how much."""
    for comparison in COMPARISONS:
        if results.measured(comparison):
            console.print(_table(results, comparison))
    for verdict in results.verdicts():
        word = "[green]met[/]   " if verdict.met else "[yellow]missed[/]"
        by = "" if verdict.met else f", missed by {verdict.missed_by}"
        title = f"{metric_of(verdict.target.metric).title} ({verdict.target.who.name})"
        console.print(f"{word} {title}: {verdict.got}, wanted {verdict.wanted}{by}")
    for problem in results.problems:
        console.print(f"[red]failed[/] {problem}", markup=True, highlight=False)


def _table(results: Results, comparison: Comparison) -> Table:
    table = Table(title=f"{comparison.title}: p50 / p95", header_style="bold")
    for title in header(comparison):
        table.add_column(title, justify="left" if title == "metric" else "right")
    for metric in results.measured(comparison):
        table.add_row(*row(results, comparison, metric))
    return table


def header(comparison: Comparison) -> list[str]:
    """The titles of a comparison's columns."""
    ratios = [f"{who.name}/{comparison.base.name}" for who in comparison.who]
    return ["metric", "unit", *(who.name for who in comparison.columns), *ratios, "target", ""]


def row(results: Results, comparison: Comparison, metric: Metric) -> list[str]:
    """The line of a metric, with what was promised of those who are looked at."""
    ratios = [results.ratio(metric.key, who, comparison.base) for who in comparison.who]
    verdicts = [v for v in results.verdicts() if v.target.metric == metric.key and v.target.who in comparison.who]
    outcomes = ["met" if v.met else f"missed by {v.missed_by}" for v in verdicts]
    if len(comparison.who) > 1:
        outcomes = [f"{v.target.who.name} {outcome}" for v, outcome in zip(verdicts, outcomes, strict=True)]
    return [
        metric.title,
        metric.unit,
        *(_cell(results.of(metric.key, who)) for who in comparison.columns),
        *("" if ratio is None else f"{ratio:.2f}x" for ratio in ratios),
        "; ".join(dict.fromkeys(v.wanted for v in verdicts)),
        "; ".join(outcomes),
    ]


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    middle, high = statistics.median(values), quantile(values, 0.95)
    digits = 0 if middle >= 100 else 1
    return f"{middle:.{digits}f} / {high:.{digits}f}"


def _markdown(results: Results, pictures: list[str]) -> Iterator[str]:
    yield f"# Benchmark of {results.facts['started']}"
    yield ""
    yield from (f"- {name}: {value}" for name, value in results.facts.items() if name != "started")
    yield ""
    yield "p50 / p95; the turns of those compared were interleaved. Times of another machine differ, ratios less."
    yield ""
    for comparison in COMPARISONS:
        if results.measured(comparison):
            yield from _table_markdown(results, comparison)
    yield from _shared_markdown(results)
    for picture in pictures:
        yield f"![{picture.partition('.')[0]}]({picture})"
        yield ""
    if results.problems:
        yield "Failed to run:"
        yield ""
        yield from (f"- {problem}" for problem in results.problems)


def _table_markdown(results: Results, comparison: Comparison) -> Iterator[str]:
    yield f"## {comparison.title}"
    yield ""
    titles = header(comparison)
    yield f"| {' | '.join(titles)} |"
    yield f"|{'|'.join('---' for _ in titles)}|"
    for metric in results.measured(comparison):
        yield f"| {' | '.join(row(results, comparison, metric))} |"
    yield ""


def _shared_markdown(results: Results) -> Iterator[str]:
    for who, processes in results.details.get("shared", {}).items():
        if processes:
            listed = ", ".join(f"{name} {mib:.1f} MiB" for name, mib in processes.items())
            count = max(results.details["memory"][who], key=int)
            yield f"Pss of what there is once, with {count} pods of {who}: {listed}."
            yield ""
    for who, by_count in results.details.get("machine", {}).items():
        for count, roles in by_count.items():
            listed = ", ".join(f"{role} {mib:.1f} MiB" for role, mib in roles.items())
            yield f"Memory of an idle machine, {count} of {who}: {listed}."
            yield ""
