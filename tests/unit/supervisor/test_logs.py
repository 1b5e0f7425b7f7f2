"""Old logs go, those of live workers stay."""

from __future__ import annotations

import os
from pathlib import Path

from kuasar.supervisor.logs import FinishedLogs


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def write(directory: Path, *files: str) -> None:
    for age, name in enumerate(files):
        (directory / name).write_text(name)
        os.utime(directory / name, (1000 + age, 1000 + age))


def test_the_oldest_goes_with_its_backups(tmp_path: Path) -> None:
    logs = FinishedLogs(str(tmp_path), (), kept=2)
    write(tmp_path, "a.log", "a.log.1", "a.log.2", "b.log", "c.log", "d.log")
    for sandbox in "abc":
        logs.finished(sandbox)
    assert names(tmp_path) == ["b.log", "c.log", "d.log"]


def test_a_sandbox_that_is_back_keeps_its_log(tmp_path: Path) -> None:
    logs = FinishedLogs(str(tmp_path), (), kept=1)
    write(tmp_path, "a.log", "b.log", "c.log")
    logs.finished("a")
    logs.started("a")
    logs.finished("b")
    logs.finished("c")
    assert names(tmp_path) == ["a.log", "c.log"]


def test_what_an_earlier_life_left_is_taken_over(tmp_path: Path) -> None:
    write(tmp_path, "live.log", "live.agent.log", "old.log", "old.log.1", "x.console.log", "newer.log", "other.txt")
    FinishedLogs(str(tmp_path), {"live"}, kept=1)
    assert names(tmp_path) == ["live.agent.log", "live.log", "newer.log", "other.txt"]


def test_all_logs_of_a_sandbox_stay_and_go_together(tmp_path: Path) -> None:
    write(tmp_path, "a.log", "b.log", "b.console.log", "b.agent.log", "a.agent.log", "a.console.log")
    logs = FinishedLogs(str(tmp_path), {"a", "b"}, kept=1)
    logs.finished("a")
    assert len(names(tmp_path)) == 6
    logs.finished("b")
    assert names(tmp_path) == ["b.agent.log", "b.console.log", "b.log"]


def test_a_log_that_is_not_there_is_no_trouble(tmp_path: Path) -> None:
    logs = FinishedLogs(str(tmp_path), (), kept=0)
    logs.finished("never-was")
    assert names(tmp_path) == []
