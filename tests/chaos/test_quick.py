"""A quick round with every run of the tests: what is killed and what must not be noticed is in the modules beside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import needs
from tests.chaos.figures import Figures
from tests.chaos.victims import UNDER_LOAD, WITH_CONTAINERD

CHECKOUT = Path(__file__).parents[2]
LONGEST_SECONDS = 900.0


@needs.ROOT
def test_nobody_notices_when_everything_of_ours_dies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "chaos.json"
    argv = [sys.executable, "-m", "tests.chaos", "--quick", "--pods", "6", "--machines", "1", "--save", str(saved)]
    done = subprocess.run(
        argv, cwd=CHECKOUT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LONGEST_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = Figures(**json.loads(saved.read_text()))
    assert figures.deaths == {victim.name: victim.quick for victim in (*UNDER_LOAD, *WITH_CONTAINERD)}
    for what in ("execs", "held", "containers", "exits", "lines"):
        assert figures.done[what] > 0
    with capsys.disabled():
        print(f"\n{figures.line()}")
