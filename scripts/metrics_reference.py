#!/usr/bin/env python3
"""Writes the reference part of docs/metrics.md from the catalogue of metrics; a unit test compares the two.

`python -m scripts.metrics_reference` rewrites everything below the marker line; what stands above is written by hand.
"""

from __future__ import annotations

from pathlib import Path

from kuasar.gateway.metrics.catalogue import ALL, Metric

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
MARKER = "<!-- Below: written by `python -m scripts.metrics_reference`. -->"


def reference() -> str:
    """The generated part."""
    head = [MARKER, "", "## Reference", "", "| metric | type | labels | meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *map(_line, ALL)]) + "\n"


def whole(text: str) -> str:
    """The page with its generated part made anew."""
    return text.partition(MARKER)[0] + reference()


def _line(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind.value} | {labels} | {metric.help} |"


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(whole(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
