"""Pictures of what commands draw in a terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from scripts.pictures import draw, terminal


def test_what_a_live_table_has_left_is_shown() -> None:
    drawn = r"print('first\r\n\x1b[1A\x1b[2K\x1b[32mlast\x1b[0m  row\x1b[?25h')"
    assert terminal([sys.executable, "-c", drawn]) == "\x1b[32mlast\x1b[0m  row"


def test_a_command_that_fails_makes_no_picture() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        terminal(["false"])


def test_a_picture_needs_nothing_of_the_network(tmp_path: Path) -> None:
    path = tmp_path / "shown.svg"
    draw("\x1b[32mready\x1b[0m <1 & 2>", "kuasarctl ps", str(path))
    text = path.read_text()
    assert "url(http" not in text
    root = ElementTree.fromstring(text)
    words = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "kuasarctl\xa0ps" in words
    assert "ready" in words
    assert any(word and "<1\xa0&\xa02>" in word for word in words)
