"""What the processes of ours that stay have in memory and open, over a long run; and whether that grows."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scripts.stack import Stack
from tests.bench.smaps import pss_mib

PROGRAMS = ("gateway", "keeper", "zygote", "reconciler")
"""Beside supervisord, which runs them."""
_WARM_UP = 0.2
"""Of the samples, at the beginning: caches fill, modules are loaded when they are first needed."""
_MOST_MIB, _MOST_SHARE, _MOST_DESCRIPTORS = 2.0, 0.05, 2


@dataclass
class Series:
    """One process, sample by sample."""

    pids: list[int] = field(default_factory=list)
    pods: list[int] = field(default_factory=list)
    """How many pods had come and gone."""
    mib: list[float] = field(default_factory=list)
    """Proportional set size."""
    descriptors: list[int] = field(default_factory=list)

    def words(self) -> str:
        """From the first sample to the last."""
        first, last = self.descriptors[0], self.descriptors[-1]
        return f"{self.mib[0]:.1f} -> {self.mib[-1]:.1f} MiB, {first} -> {last} descriptors"

    def grown(self) -> list[str]:
        """In words, what is more at the end than it was after the warm-up. Medians of quarters are compared."""
        found = []
        before, after = _ends(self.mib)
        if after - before > max(_MOST_MIB, _MOST_SHARE * before):
            found.append(f"memory grew from {before:.1f} to {after:.1f} MiB")
        before, after = _ends(self.descriptors)
        if after - before > _MOST_DESCRIPTORS:
            found.append(f"descriptors grew from {before:g} to {after:g}")
        if len(set(self.pids)) > 1:
            found.append(f"it was replaced: pids {sorted(set(self.pids))}")
        return found


class Residents:
    """The processes of a stack."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.series = {name: Series() for name in ("supervisord", *PROGRAMS)}

    def sample(self, pods: int) -> None:
        """Look at all of them now, after ``pods`` pods."""
        for name, series in self.series.items():
            pid = self._pid(name)
            series.pids.append(pid)
            series.pods.append(pods)
            series.mib.append(pss_mib(pid))
            series.descriptors.append(len(os.listdir(f"/proc/{pid}/fd")))

    def wrong(self) -> list[str]:
        """What grew, process by process."""
        return [f"{name}: {words}" for name, series in self.series.items() for words in series.grown()]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {name: asdict(series) for name, series in self.series.items()}

    def draw(self, path: str) -> None:
        """A picture: memory above, descriptors below, by the number of pods."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 7))
        memory, descriptors = figure.subplots(2, 1, sharex=True)
        for name, series in self.series.items():
            memory.plot(series.pods, series.mib, label=name)
            descriptors.plot(series.pods, series.descriptors, label=name)
        memory.set_ylabel("Pss, MiB")
        memory.set_title("Processes that stay while pods come and go")
        memory.legend(loc="upper left", ncols=3)
        descriptors.set_ylabel("open descriptors")
        descriptors.set_xlabel("pods created and removed")
        for axes in (memory, descriptors):
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
        figure.tight_layout()
        figure.savefig(path, dpi=120)

    def _pid(self, name: str) -> int:
        return self._stack.supervisord_pid() if name == "supervisord" else self._stack.pid(name)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Medians of the first and the last quarter after the warm-up."""
    warm = values[int(len(values) * _WARM_UP) :]
    quarter = max(1, len(warm) // 4)
    return statistics.median(warm[:quarter]), statistics.median(warm[-quarter:])
