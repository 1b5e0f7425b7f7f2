"""Holes in files."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kuasar.core.holes import punch


def test_what_is_punched_takes_nothing_and_reads_as_zeros(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 65536)
    with path.open("r+b") as file:
        punch(file.fileno(), 0, 32768)
    assert path.read_bytes() == bytes(32768) + b"x" * 32768
    assert path.stat().st_blocks * 512 <= 32768


def test_what_cannot_be_punched(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with path.open("rb") as file, pytest.raises(OSError, match="cannot punch a hole") as caught:
        punch(file.fileno(), 0, 4096)
    assert caught.value.errno == errno.EBADF
