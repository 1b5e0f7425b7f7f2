"""From what an operator types to one sandbox."""

from __future__ import annotations

import pytest

from kuasar.cli.ctl.failures import Absent, Ambiguous
from kuasar.cli.ctl.select import Named, select

KNOWN = [
    Named("abc1", "web", "default"),
    Named("abc12", "db", "default"),
    Named("abd3", "web", "other"),
    Named("web", "odd", "default"),
    Named("f00d"),
]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("abc1", "abc1"),  # a whole id, though another one begins with it
        ("abc12", "abc12"),
        ("abd", "abd3"),
        ("f", "f00d"),
        ("db", "abc12"),
        ("other/web", "abd3"),
        ("web", "web"),  # an id goes before a name
    ],
)
def test_one_is_meant(wanted: str, found: str) -> None:
    assert select(wanted, KNOWN) == found


def test_several_are_meant() -> None:
    with pytest.raises(Ambiguous, match=r"'abc' fits 2: abc1 \(web\), abc12 \(db\)") as caught:
        select("abc", KNOWN)
    assert caught.value.exit_code == 2
    with pytest.raises(Ambiguous, match="fits 2"):
        select("web", [each for each in KNOWN if each.id != "web"])
    with pytest.raises(Ambiguous, match=r"fits 9: .* and 4 more"):
        select("x", [Named(f"x{number}") for number in range(9)])


@pytest.mark.parametrize("wanted", ["", "abc123", "default/none", "default"])
def test_none_is_meant(wanted: str) -> None:
    with pytest.raises(Absent, match="there is no sandbox") as caught:
        select(wanted, KNOWN)
    assert caught.value.exit_code == 3


def test_the_same_one_twice_is_one() -> None:
    assert select("f0", [*KNOWN, Named("f00d", "late")]) == "f00d"
