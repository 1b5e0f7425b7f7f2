"""What the commands print: tables and bars for people, JSON for programs, remarks on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kuasar.cli.ctl.words import printable

_PIPE_COLUMNS = 1000
"""No line is folded where no terminal ends it."""
_COLOURS = {
    "ready": "green",
    "pass": "green",
    "usable": "green",
    "alive": "green",
    "warn": "yellow",
    "starting": "yellow",
    "stopping": "yellow",
    "suspended": "yellow",
    "fail": "bold red",
    "damaged": "bold red",
    "dead": "bold red",
    "unusable": "bold red",
}


def console() -> Console:
    """Standard output."""
    width = None if sys.stdout.isatty() else _PIPE_COLUMNS
    return Console(width=width, markup=False, highlight=False, emoji=False)


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows below headers; no lines around them, so that they can be cut and grepped."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for header in headers:
        made.add_column(header, no_wrap=header in ("ID", "STATE"), overflow="fold")
    for row in rows:
        made.add_row(*(value if isinstance(value, Text) else styled(str(value)) for value in row))
    _show(made)


def fields(values: Iterable[tuple[str, object]]) -> None:
    """Names and values, one a line; empty values are left out."""
    shown = [(name, str(value)) for name, value in values if str(value) not in ("", "None")]
    made = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in shown:
        made.add_row(name, styled(value))
    _show(made)


def bars(values: Sequence[tuple[str, float]]) -> None:
    """Durations in milliseconds, one after the other as they were, each a bar of its share."""
    total = sum(duration for _, duration in values)
    out = console()
    room = max(10, min(out.width, 100) - 34)
    at = 0.0
    for name, duration in values:
        start, end = (round(room * edge / total) if total else 0 for edge in (at, at + duration))
        bar = " " * start + "█" * (end - start) if end > start else " " * start + "▏"
        out.print(Text.assemble((f"{printable(name):<12.12} {duration:9.2f} ms  ", "bold"), (bar, "cyan")))
        at += duration
    out.print(Text(f"{'together':<12} {total:9.2f} ms", "bold"))


def lines(title: str, texts: Sequence[str]) -> None:
    """Lines of a log, indented."""
    if texts:
        out = console()
        out.print(Text(f"{title}:", "bold"))
        for text in texts:
            out.print(Text(f"  {printable(text)}"), soft_wrap=True)


def data(value: Any) -> None:
    """JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def line(value: Any) -> None:
    """JSON on one line, at once: for streams."""
    click.echo(json.dumps(value, ensure_ascii=False))
    sys.stdout.flush()


def remark(text: str) -> None:
    """Something the reader should know, apart from what was asked for."""
    if text:
        click.echo(f"note: {text}", err=True)


def _show(made: Table) -> None:
    """Without the blanks by which rich fills every line."""
    out = console()
    with out.capture() as captured:
        out.print(made)
    for text in captured.get().splitlines():
        click.echo(text.rstrip())


def styled(text: str) -> Text:
    """In the colour of what it says, without control characters."""
    return Text(printable(text), _COLOURS.get(text, ""))
