"""A console's file is kept small, however the VMM writes to it."""

from __future__ import annotations

import os
from pathlib import Path

from kuasar.backends.microvm import shorten_console

LIMIT = 64 * 1024


def test_a_file_that_is_appended_to_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "console"
    path.write_bytes(b"old\n" * LIMIT + b"the end\n")
    shorten_console(str(path), True, LIMIT)
    assert path.stat().st_size == LIMIT // 2
    assert path.read_bytes().endswith(b"old\nthe end\n")


def test_a_file_that_is_written_on_gets_a_hole(tmp_path: Path) -> None:
    path = tmp_path / "console"
    with path.open("wb", buffering=0) as vmm:
        for _ in range(2):
            vmm.write(b"old\n" * LIMIT)
            shorten_console(str(path), False, LIMIT)
            assert path.stat().st_blocks * 512 <= LIMIT
        vmm.write(b"the end\n")
    assert path.stat().st_size == 8 * LIMIT + 8
    assert path.read_bytes()[-12:] == b"old\nthe end\n"


def test_a_small_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "console"
    path.write_bytes(b"few words")
    for is_appended_to in (True, False):
        shorten_console(str(path), is_appended_to, LIMIT)
        assert path.read_bytes() == b"few words"
    assert os.listdir(tmp_path) == ["console"]
