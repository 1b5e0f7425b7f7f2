"""The outcome of a run as files and on the screen."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from tests.bench.metrics import Metric, Who, metric_of
from tests.bench.pictures import draw
from tests.bench.results import Results, quantile

_COLUMNS: tuple[tuple[Who, str], ...] = (("ours", "ours"), ("shim", "shim"), ("wasm", "wasm"))


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
    table = Table(title="p50 / p95", header_style="bold")
    for title in _header():
        table.add_column(title, justify="left" if title == "metric" else "right")
    for metric in results.measured():
        table.add_row(*_row(results, metric))
    console.print(table)
    for verdict in results.verdicts():
        word = "[green]met[/]   " if verdict.met else "[yellow]missed[/]"
        by = "" if verdict.met else f", missed by {verdict.missed_by}"
        console.print(f"{word} {_title(verdict.target.metric)}: {verdict.got}, wanted {verdict.wanted}{by}")
    for problem in results.problems:
        console.print(f"[red]failed[/] {problem}", markup=True, highlight=False)


def _title(key: str) -> str:
    return metric_of(key).title


def _header() -> list[str]:
    return ["metric", "unit", *(name for _, name in _COLUMNS), "ratio ours/shim", "target", ""]


def _row(results: Results, metric: Metric) -> list[str]:
    verdict = next((v for v in results.verdicts() if v.target.metric == metric.key), None)
    ratio = results.ratio(metric.key)
    return [
        metric.title,
        metric.unit,
        *(_cell(results.of(metric.key, who)) for who, _ in _COLUMNS),
        "" if ratio is None else f"{ratio:.2f}x",
        verdict.wanted if verdict else "",
        "" if verdict is None else "met" if verdict.met else f"missed by {verdict.missed_by}",
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
    yield "p50 / p95; the runs of ours and of the shim were interleaved. Times of another machine differ, ratios less."
    yield ""
    header = _header()
    yield f"| {' | '.join(header)} |"
    yield f"|{'|'.join('---' for _ in header)}|"
    for metric in results.measured():
        yield f"| {' | '.join(_row(results, metric))} |"
    yield ""
    yield from _shared_markdown(results)
    for picture in pictures:
        yield f"![{picture.partition('.')[0]}]({picture})"
        yield ""
    if results.problems:
        yield "Failed to run:"
        yield ""
        yield from (f"- {problem}" for problem in results.problems)


def _shared_markdown(results: Results) -> Iterator[str]:
    for who, processes in results.details.get("shared", {}).items():
        if processes:
            listed = ", ".join(f"{name} {mib:.1f} MiB" for name, mib in processes.items())
            count = max(results.details["memory"][who], key=int)
            yield f"Pss of what there is once, with {count} pods of {who}: {listed}."
            yield ""
