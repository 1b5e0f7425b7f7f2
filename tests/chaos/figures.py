"""What a run says at its end: one line, and the same as data."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Figures:
    """A whole run. ``answers``: per victim the seconds from its death to the next answer."""

    seed: int
    pods: int
    seconds: float
    done: dict[str, int]
    answers: dict[str, list[float]]
    wrong: list[str]

    def line(self) -> str:
        """All of it for people."""
        kills = ", ".join(
            f"{name} {len(seconds)} (p50 {_ms(seconds, 50)}, p95 {_ms(seconds, 95)} ms)"
            for name, seconds in self.answers.items()
        )
        done = Counter(self.done)
        return (
            f"chaos: {self.pods} pods, {self.seconds:.0f} s, seed {self.seed}; killed {kills}; {done['execs']} execs, "
            f"{done['containers']} containers, {done['lines']} lines, {done['repeated']} repeated calls; "
            f"{len(self.wrong)} wrong"
        )

    def save(self, path: str) -> None:
        """As JSON."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=1)


def _ms(seconds: list[float], percentile: int) -> str:
    if len(seconds) == 1:
        return f"{seconds[0] * 1000:.0f}"
    return f"{statistics.quantiles(seconds, n=100, method='inclusive')[percentile - 1] * 1000:.0f}"
