"""The reconciler's last look on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kuasar.core.reconciled import FILE, Look, read, write


def test_nobody_has_looked(tmp_path: Path) -> None:
    assert read(str(tmp_path)) is None


def test_what_was_found_is_read_and_steps_add_up(tmp_path: Path) -> None:
    first = Look(at=1.5, recorded={"worker": 2}, alive={"worker": 1}, leaked={"log": 3})
    write(str(tmp_path), first, [("adopt", "done")])
    found = read(str(tmp_path))
    assert found == Look(1.5, {"worker": 2}, {"worker": 1}, {"log": 3}, {"adopt": {"done": 1}})
    write(str(tmp_path), Look(at=2.5), [("adopt", "done"), ("adopt", "failed"), ("kill", "done")])
    assert read(str(tmp_path)) == Look(at=2.5, steps={"adopt": {"done": 2, "failed": 1}, "kill": {"done": 1}})


@pytest.mark.parametrize("text", ["", "[]", '{"at": 1, "odd": 2}', "\xff"])
def test_a_file_that_cannot_be_read_is_no_look_and_is_replaced(tmp_path: Path, text: str) -> None:
    Path(tmp_path, FILE).write_text(text, encoding="latin-1")
    assert read(str(tmp_path)) is None
    write(str(tmp_path), Look(at=3.0), [])
    assert read(str(tmp_path)) == Look(at=3.0)
    assert json.loads(Path(tmp_path, FILE).read_text())["at"] == 3.0


def test_nothing_fails_where_nothing_can_be_written(tmp_path: Path) -> None:
    write(str(tmp_path / "none"), Look(at=1.0), [])
    assert read(str(tmp_path / "none")) is None
