"""The line at the end of a run says what happened."""

from __future__ import annotations

import json
from pathlib import Path

from tests.chaos.figures import Figures

FIGURES = Figures(
    seed=7,
    pods=2,
    seconds=61.4,
    done={"execs": 5, "lines": 100, "exits": 6},
    deaths={"worker": 4, "zygote": 1, "containerd": 1},
    answers={"worker": [0.01, 0.02, 0.03], "worker with zygote": [0.2], "containerd": [0.5]},
    wrong=["a/b: it was lost"],
)


def test_the_line() -> None:
    assert FIGURES.line() == (
        "chaos: 2 pods, 61 s, seed 7; killed worker 4 (p50 20, p95 29 ms), zygote 1, containerd 1 (p50 500, "
        "p95 500 ms), 1 pairs of them at once (p50 200, p95 200 ms); 5 execs (0 broken off by containerd's death), "
        "0 that outlived others, 0 containers, 6 exits reported once (0 told again by another gateway), 100 lines, "
        "0 repeated calls; 1 wrong"
    )


def test_saved_figures_are_read_again(tmp_path: Path) -> None:
    FIGURES.save(str(tmp_path / "f.json"))
    assert Figures(**json.loads((tmp_path / "f.json").read_text())) == FIGURES
