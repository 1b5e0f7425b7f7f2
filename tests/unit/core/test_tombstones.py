"""Tombstones: written, read, bounded, and never a reason for something else to fail."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

from kuasar.core import tombstones
from kuasar.core.tombstones import KEPT_SECONDS, MOST, Tombstone, bury, last_lines, prune, read_all


def stone(sandbox: str, ended_at: int = 3, reason: str = "the agent died") -> Tombstone:
    return Tombstone(sandbox, "k8s.io", "runc", "pod", "running", reason, 255, 1, 2, ended_at, 0, ["console"], ["log"])


def test_what_is_written_is_read_newest_first(tmp_path: Path) -> None:
    bury(str(tmp_path), stone("a", 3))
    bury(str(tmp_path), stone("b", 4))
    bury(str(tmp_path), stone("a", 5))
    assert read_all(str(tmp_path)) == [stone("a", 5), stone("b", 4)]


def test_none_were_written(tmp_path: Path) -> None:
    assert read_all(str(tmp_path)) == []
    assert prune(str(tmp_path)) == []


def test_a_damaged_one_is_skipped(tmp_path: Path) -> None:
    bury(str(tmp_path), stone("a"))
    (tmp_path / "tombstones" / "b.json").write_text("{")
    (tmp_path / "tombstones" / "c.json").write_text('{"sandbox": "c"}')
    assert [each.sandbox for each in read_all(str(tmp_path))] == ["a"]


def test_a_long_reason_is_cut(tmp_path: Path) -> None:
    bury(str(tmp_path), stone("a", reason="x" * 100_000))
    assert len(read_all(str(tmp_path))[0].reason) == 2000


def test_a_place_that_cannot_be_written_fails_nothing(tmp_path: Path) -> None:
    (tmp_path / "tombstones").write_text("in the way")
    bury(str(tmp_path), stone("a"))


def test_the_old_go_and_the_oldest_beyond_the_most(tmp_path: Path) -> None:
    first = time.time() - 10_000
    for number in range(MOST + 3):
        bury(str(tmp_path), stone(f"s{number}"))
        os.utime(tmp_path / "tombstones" / f"s{number}.json", (first + number, first + number))
    assert len(read_all(str(tmp_path))) == MOST
    assert not (tmp_path / "tombstones" / "s0.json").exists()
    prune(str(tmp_path), now=first + MOST - 0.5 + KEPT_SECONDS)
    assert sorted(each.sandbox for each in read_all(str(tmp_path))) == [f"s{MOST}", f"s{MOST + 1}", f"s{MOST + 2}"]


def test_the_end_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(b"line %d\n" % number for number in range(5000)) + b"\xff" + b"y" * 1000)
    lines = last_lines(str(path))
    assert (len(lines), lines[-2]) == (20, "line 4999")
    assert len(lines[-1]) == 300
    assert last_lines(str(tmp_path / "none")) == []


def test_every_field_survives(tmp_path: Path) -> None:
    bury(str(tmp_path), stone("a"))
    read = tombstones.read(f"{tombstones.directory(str(tmp_path))}/a.json")
    assert read is not None
    assert dataclasses.asdict(read) == dataclasses.asdict(stone("a"))
