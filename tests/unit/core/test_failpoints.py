"""Failpoints: armed by files, counted over processes, listed in the documentation; nothing when they are off."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kuasar.core import failpoints
from kuasar.core.errors import BackendFailed, InvalidArgument
from kuasar.core.failpoints import failpoint
from tests.failpoints import arm, disarm, hits, points_in_code, points_in_docs


@pytest.fixture
def points(tmp_path: Path) -> Iterator[Path]:
    failpoints.configure(str(tmp_path))
    yield tmp_path
    failpoints.configure("")


def test_off_they_do_nothing(tmp_path: Path) -> None:
    arm(tmp_path, "x", "error")
    failpoint("x")
    assert hits(tmp_path, "x") == 0


def test_one_that_is_not_armed_does_nothing(points: Path) -> None:
    failpoint("x")
    assert os.listdir(points) == []


def test_an_error_some_times(points: Path) -> None:
    arm(points, "x", "error skip=1 times=2")
    failpoint("x")
    for _ in range(2):
        with pytest.raises(BackendFailed, match="failpoint x"):
            failpoint("x")
    failpoint("x")
    assert hits(points, "x") == 4
    disarm(points, "x")
    failpoint("x")
    assert hits(points, "x") == 0


def test_an_error_of_the_kernel(points: Path) -> None:
    arm(points, "x", "oserror:28")
    with pytest.raises(OSError, match="No space left") as caught:
        failpoint("x")
    assert caught.value.errno == errno.ENOSPC


def test_a_stall_is_bounded_by_its_argument(points: Path) -> None:
    arm(points, "x", "hang:0.05")
    before = time.monotonic()
    failpoint("x")
    assert time.monotonic() - before >= 0.05


def test_hits_are_counted_over_processes_and_one_of_them_dies(points: Path) -> None:
    arm(points, "x", "kill skip=3 times=1")
    ends = []
    for _ in range(6):
        pid = os.fork()
        if pid == 0:
            failpoint("x")
            os._exit(0)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    assert ends == [0, 0, 0, -signal.SIGKILL, 0, 0]


@pytest.mark.parametrize("text", ["", "explode", "error often=1", "error times=x", "hang:long"])
def test_nonsense_is_said_to_be_nonsense(points: Path, text: str) -> None:
    arm(points, "x", text)
    with pytest.raises(InvalidArgument, match="failpoint"):
        failpoint("x")


def test_the_documentation_lists_every_point() -> None:
    assert points_in_docs() == set(points_in_code())
