"""What counts as growth."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.layout import Layout
from scripts.stack import Stack
from tests.chaos.residents import Residents, Series

FLAT = [10.0, 18.0, *[20.0 + 0.1 * (n % 3) for n in range(98)]]


def series(mib: list[float], descriptors: list[int], pids: list[int] | None = None) -> Series:
    return Series(pids or [7] * len(mib), list(range(len(mib))), mib, descriptors)


def test_warming_up_is_no_growth() -> None:
    assert series(FLAT, [5, 8, *[9 + n % 2 for n in range(98)]]).grown() == []


@pytest.mark.parametrize(
    ("mib", "descriptors", "pids", "words"),
    [
        ([20 + 0.05 * n for n in range(100)], [9] * 100, None, "memory grew from 21.5 to 24.5 MiB"),
        (FLAT, [9 + n // 10 for n in range(100)], None, "descriptors grew from 11.5 to 17.5"),
        (FLAT, [9] * 100, [7] * 50 + [8] * 50, "it was replaced: pids [7, 8]"),
    ],
)
def test_growth_is_named(mib: list[float], descriptors: list[int], pids: list[int] | None, words: str) -> None:
    (found,) = series(mib, descriptors, pids).grown()
    assert found == words


@pytest.mark.leaks("matplotlib keeps the files of the fonts open that it has drawn with")
def test_the_picture_is_drawn(tmp_path: Path) -> None:
    residents = Residents(Stack(Layout(name="none", data=str(tmp_path))))
    for each in residents.series.values():
        each.pods, each.mib, each.descriptors = [0, 1], [1.0, 2.0], [3, 4]
    residents.draw(str(tmp_path / "soak.png"))
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
