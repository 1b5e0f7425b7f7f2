"""Removing trees, and who is in the way."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kuasar.core.errors import BackendFailed
from kuasar.core.trees import blocked_by, holders_of, mounts_below, remove_tree


def test_a_tree_is_removed_and_removing_it_again_is_harmless(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "file").write_text("x")
    (top / "link").symlink_to(tmp_path)
    remove_tree(str(top))
    remove_tree(str(top))
    assert tmp_path.exists()
    assert not top.exists()


def test_what_is_no_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BackendFailed, match="cannot be removed"):
        remove_tree(str(tmp_path / "file"))


def test_mounts_are_those_at_and_below_a_directory() -> None:
    assert "/proc" in mounts_below("/proc")
    assert mounts_below("/pro") == []


def test_a_process_that_stands_in_a_directory_is_named(tmp_path: Path) -> None:
    assert blocked_by(str(tmp_path)) == ""
    with subprocess.Popen(["sleep", "1000"], cwd=tmp_path) as process:
        try:
            assert holders_of(str(tmp_path)) == [f"process {process.pid} (sleep)"]
            assert blocked_by(str(tmp_path)) == f"used by process {process.pid} (sleep)"
        finally:
            process.kill()


def test_an_open_file_counts_but_not_our_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (tmp_path / "file").open(), subprocess.Popen(["sleep", "1000"], stdin=(tmp_path / "file").open()) as process:
        try:
            assert holders_of(str(tmp_path)) == [f"process {process.pid} (sleep)"]
        finally:
            process.kill()
    assert os.listdir(tmp_path) == ["file"]
