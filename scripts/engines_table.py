#!/usr/bin/env python3
"""Writes README's table of engines and features from what the backends declare; a unit test compares the two.

`python -m scripts.engines_table` rewrites what stands between the two marker lines; `kuasarctl engines` says the same.
"""

from __future__ import annotations

from pathlib import Path

from kuasar.backends.base import Backend, Capability
from kuasar.backends.registry import require_backend
from kuasar.core.engines import BACKEND_MODULES

PAGE = Path(__file__).resolve().parent.parent / "README.md"
BEGIN = "<!-- Written by `python -m scripts.engines_table`, as far as the next line of this kind. -->"
END = "<!-- Up to here. -->"
_WORDS = {
    Capability.EXEC: "exec",
    Capability.TTY: "terminal",
    Capability.PAUSE: "pause",
    Capability.RESIZE: "grows while it runs",
    Capability.ATTACH: "devices are plugged in",
    Capability.SNAPSHOT: "snapshot",
    Capability.CHECKPOINT: "checkpoint",
    Capability.HOST_NETWORK: "host network",
}


def table() -> str:
    """The generated part: one row for each engine, one column for each capability that any of them has."""
    backends = {kind: require_backend(kind) for kind in sorted(BACKEND_MODULES)}
    columns = [each for each in Capability if any(each in backend.capabilities for backend in backends.values())]
    head = "| | " + " | ".join(_WORDS[each] for each in columns) + " |"
    rows = [_row(kind, backend, columns) for kind, backend in backends.items()]
    return "\n".join([BEGIN, "", head, "|---" * (len(columns) + 1) + "|", *rows, "", END])


def _row(kind: str, backend: type[Backend], columns: list[Capability]) -> str:
    return f"| `{kind}` | " + " | ".join("yes" if each in backend.capabilities else "" for each in columns) + " |"


def whole(text: str) -> str:
    """The page with its generated part made anew. Raises ValueError if it has none."""
    before, marker, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not marker or not end:
        raise ValueError(f"{PAGE.name} has no place for the table: the lines {BEGIN!r} and {END!r} are needed")
    return before + table() + after


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(whole(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
