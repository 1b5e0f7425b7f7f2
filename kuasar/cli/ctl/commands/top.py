"""``top``: what the sandboxes use, again and again. Reads directories and cgroups only: it asks nobody, and works
while the gateway is down."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import click

from kuasar.cli.ctl import words
from kuasar.cli.ctl.node import Node
from kuasar.cli.ctl.options import json_option, pass_node
from kuasar.cli.ctl.output import line, live, table
from kuasar.core import records
from kuasar.core.cgroup.hierarchies import current
from kuasar.core.cgroup.usage import Usage, usage
from kuasar.core.records import Summary

_SHORT = 12
_HEADERS = ("ID", "POD", "ENGINE", "STATE", "AGE", "CONTAINERS", "CPU%", "MEMORY", "THREADS")
_ORDERS = {
    "cpu": lambda each: -each.cpu_percent,
    "memory": lambda each: -each.used.memory_bytes,
    "age": lambda each: each.sandbox.created_at,
}


@dataclass(frozen=True)
class Row:
    """One sandbox in one round. A processor that is used all the time is 100 percent."""

    sandbox: Summary
    used: Usage
    cpu_percent: float


@click.command()
@click.option(
    "-s", "--seconds", type=click.FloatRange(min=0.1), default=2.0, show_default=True, help="Between two rounds."
)
@click.option("-n", "--rounds", type=click.IntRange(min=1), help="End after so many rounds; else when interrupted.")
@click.option("--sort", type=click.Choice(list(_ORDERS)), default="cpu", show_default=True, help="What stands first.")
@json_option
@pass_node
def top(node: Node, seconds: float, rounds: int | None, sort: str, as_json: bool) -> None:
    """Show what the sandboxes use, again and again.

    Processor time is that of the last round. Memory is without files that nobody has used lately, as Kubernetes
    counts it. Of a machine both are those of its VMM and helpers, which is all that the host sees. With --json each
    round is an object on a line of its own.
    """
    with suppress(KeyboardInterrupt):
        shown = itertools.islice(_rounds(node.config.sandboxes_dir, seconds), rounds)
        ordered = (sorted(rows, key=_ORDERS[sort]) for rows in shown)
        if as_json:
            for rows in ordered:
                line({"at": time.time_ns(), "sandboxes": [_plain(row) for row in rows]})
        elif sys.stdout.isatty():
            live(_HEADERS, (map(_cells, rows) for rows in ordered))
        else:
            for rows in ordered:
                table(_HEADERS, map(_cells, rows))
                sys.stdout.flush()


def _rounds(directory: str, seconds: float) -> Iterator[list[Row]]:
    """What was used in each span of ``seconds``. Never ends."""
    hierarchies = current()

    def look() -> dict[str, tuple[Summary, Usage]]:
        found = records.read_all(directory)
        return {each.id: (each, sum((usage(path, hierarchies) for path in each.cgroups), Usage())) for each in found}

    before, then = look(), time.monotonic()
    while True:
        time.sleep(seconds)
        now, this = look(), time.monotonic()
        yield list(_compared(before, now, this - then))
        before, then = now, this


def _compared(
    before: dict[str, tuple[Summary, Usage]], now: dict[str, tuple[Summary, Usage]], seconds: float
) -> Iterable[Row]:
    for sandbox, (summary, used) in now.items():
        known = before.get(sandbox)
        # what was made, or ended with its cgroup, in between has no span to be compared with
        spent = max(0, used.cpu_ns - known[1].cpu_ns) if known is not None else 0
        yield Row(summary, used, spent / seconds / 1e7)


def _cells(row: Row) -> tuple[object, ...]:
    sandbox = row.sandbox
    return (
        sandbox.id[:_SHORT],
        words.pod(sandbox.pod_name, sandbox.pod_namespace) or "-",
        sandbox.engine or "-",
        sandbox.state,
        words.age(sandbox.created_at),
        len(sandbox.containers),
        f"{row.cpu_percent:.1f}",
        words.size(row.used.memory_bytes),
        row.used.pids,
    )


def _plain(row: Row) -> dict[str, Any]:
    sandbox = row.sandbox
    return {
        "id": sandbox.id,
        "pod": sandbox.pod_name,
        "pod_namespace": sandbox.pod_namespace,
        "engine": sandbox.engine,
        "state": sandbox.state,
        "created_at": sandbox.created_at,
        "containers": len(sandbox.containers),
        "cpu_percent": round(row.cpu_percent, 2),
        "memory_bytes": row.used.memory_bytes,
        "threads": row.used.pids,
    }
