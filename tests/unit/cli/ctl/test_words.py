"""Numbers as people read them."""

from __future__ import annotations

import pytest

from kuasar.cli.ctl import words

SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59, "59s"), (60, "1m"), (61, "1m1s"), (3600, "1h"), (3661, "1h1m"), (90000, "1d1h"), (-5, "0s")],
)
def test_age(seconds: int, text: str) -> None:
    now = 1_700_000_000 * SECOND
    assert words.age(now - seconds * SECOND, now) == text


def test_never() -> None:
    assert words.age(0) == words.moment(0) == "-"
    assert words.moment(1_700_000_000 * SECOND) == "2023-11-14 22:13:20 UTC"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (102400, "100 KiB"),
        (56 << 20, "56.0 MiB"),
        (5 << 40, "5.0 TiB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert words.size(count) == text


@pytest.mark.parametrize(
    ("status", "text"), [(0, "exit status 0"), (137, "killed by SIGKILL (137)"), (255, "exit status 255")]
)
def test_ending(status: int, text: str) -> None:
    assert words.ending(status) == text


def test_what_a_guest_writes_does_not_move_the_cursor() -> None:
    assert words.printable("a\x1b[2Jb\rc\td\nü") == "a�[2Jb�c\td�ü"
