"""Which sequences of lines are right."""

from __future__ import annotations

import pytest

from tests.chaos.load import first_wrong


@pytest.mark.parametrize(
    ("numbers", "whole", "at"),
    [
        ([0, 1, 2, 3], True, None),
        ([], True, 0),
        ([1, 2], True, 0),
        ([0, 1, 3], True, 2),
        ([0, 1, 1], True, 2),
        ([0, -1, 2], True, 1),
        ([4, 7, 9], False, None),
        ([], False, 0),
        ([4, 4], False, 1),
        ([4, 9, 7], False, 2),
        ([4, -1, 7], False, 1),
    ],
)
def test_first_wrong(numbers: list[int], whole: bool, at: int | None) -> None:
    assert first_wrong(numbers, whole) == at
