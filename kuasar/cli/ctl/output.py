"""What the commands print: tables and bars for people, JSON for programs, remarks on standard error.

In a terminal ``rich`` draws; into a pipe go plain columns, for which it need not be loaded: that saves 0.1 s, and as
much again for 200 rows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from kuasar.cli.ctl.words import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_BAR_COLUMNS = 100
_PIPE_COLUMNS = 100
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
_WHOLE = ("ID", "STATE", "CHECK", "STATUS")
"""Columns that are never folded."""


class Paragraph(str):
    """Text of a cell whose line breaks are meant."""


def console() -> Console:
    """Standard output, drawn by rich."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PIPE_COLUMNS
    return Console(width=width, markup=False, highlight=False, emoji=False)


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows below headers; no lines around them, so that they can be cut and grepped."""
    cells = [[_clean(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        _plain([list(headers), *cells])
        return
    console().print(_drawn(headers, cells))


def live(headers: Sequence[str], rounds: Iterable[Iterable[Sequence[object]]]) -> None:
    """Tables of a terminal, each in place of the one before; the last one stays. What does not fit is cut."""
    from rich.live import Live

    out = console()
    with Live(_drawn(headers, []), console=out, auto_refresh=False) as shown:
        for rows in rounds:
            cells = [[_clean(value) for value in row] for row in rows]
            shown.update(_drawn(headers, cells[: max(1, out.height - 2)]), refresh=True)


def _drawn(headers: Sequence[str], cells: Iterable[Sequence[str]]) -> Table:
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for header in headers:
        made.add_column(header, no_wrap=header in _WHOLE, overflow="fold")
    for row in cells:
        made.add_row(*map(_styled, row))
    return made


def fields(values: Iterable[tuple[str, object]]) -> None:
    """Names and values, one a line; empty values are left out."""
    shown = [[name, _clean(value)] for name, value in values if str(value) not in ("", "None")]
    if not sys.stdout.isatty():
        _plain(shown)
        return
    from rich.table import Table

    made = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in shown:
        made.add_row(name, _styled(value))
    console().print(made)


def _plain(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; the last one as it comes."""
    split = [[cell.split("\n") for cell in row] for row in rows]
    widths = [max(len(part) for cell in column for part in cell) for column in zip(*split, strict=True)]
    drawn = []
    for row in split:
        for index in range(max(map(len, row))):
            parts = [cell[index] if index < len(cell) else "" for cell in row]
            drawn.append("  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip())
    if drawn:
        click.echo("\n".join(drawn))  # at once: a write for each of 200 lines takes 40 ms


def bars(values: Sequence[tuple[str, float]]) -> None:
    """Durations in milliseconds, one after the other as they were, each a bar of its share."""
    from rich.text import Text

    total = sum(duration for _, duration in values)
    out = console()
    room = max(10, min(out.width, _BAR_COLUMNS) - 29)
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
        click.secho(f"{title}:", bold=True)
        for text in texts:
            click.echo(f"  {printable(text)}")


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


def _clean(value: object) -> str:
    """Without control characters: it may come from a guest."""
    if isinstance(value, Paragraph):
        return "\n".join(printable(part) for part in value.split("\n"))
    return printable(str(value))


def _styled(text: str) -> Text:
    """In the colour of what it says."""
    from rich.text import Text

    return Text(text, _COLOURS.get(text, ""))
