"""What a run says at its end: one line, and the same as data."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Figures:
    """A whole run. ``deaths``: how often each victim died. ``answers``: the seconds from a death to the next answer,
    per victim that died alone; of two that died together until both answered, under "one with other"."""

    seed: int
    pods: int
    seconds: float
    done: dict[str, int]
    deaths: dict[str, int]
    answers: dict[str, list[float]]
    wrong: list[str]

    def line(self) -> str:
        """All of it for people."""
        kills = ", ".join(f"{name} {count}{self._alone(name)}" for name, count in self.deaths.items())
        pairs = [second for name, seconds in self.answers.items() if " with " in name for second in seconds]
        together = f", {len(pairs)} pairs of them at once ({_words(pairs)})" if pairs else ""
        done = Counter(self.done)
        return (
            f"chaos: {self.pods} pods, {self.seconds:.0f} s, seed {self.seed}; killed {kills}{together}; "
            f"{done['execs']} execs ({done['broken off']} broken off by containerd's death), {done['held']} that "
            f"outlived others, {done['containers']} containers, {done['exits']} exits reported once "
            f"({done['repeated exits']} told again by another gateway), {done['lines']} lines, "
            f"{done['repeated']} repeated calls; {len(self.wrong)} wrong"
        )

    def save(self, path: str) -> None:
        """As JSON."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=1)

    def _alone(self, name: str) -> str:
        words = [_words(self.answers[name])] if self.answers.get(name) else []
        for part in ("of a machine", "for the Sandbox API"):
            seconds = self.answers.get(f"{name} {part}")
            words += [f"{part} {_words(seconds)}"] if seconds else []
        return f" ({', '.join(words)})" if words else ""


def _words(seconds: list[float]) -> str:
    return f"p50 {_ms(seconds, 50)}, p95 {_ms(seconds, 95)} ms"


def _ms(seconds: list[float], percentile: int) -> str:
    if len(seconds) == 1:
        return f"{seconds[0] * 1000:.0f}"
    return f"{statistics.quantiles(seconds, n=100, method='inclusive')[percentile - 1] * 1000:.0f}"
