"""What counts as a stack's, seen on real processes and directories."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.layout import Layout
from scripts.leftovers import Before, end_processes, find, processes

_WAITS = "import sys; sys.stdout.write('up\\n'); sys.stdout.flush(); sys.stdin.read()"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(name="utest", data=str(tmp_path))


@contextmanager
def process(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs, with these words on its command line."""
    argv = [sys.executable, "-I", "-S", "-c", _WAITS, *words]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == b"up\n"
        try:
            yield started
        finally:
            started.kill()


def test_our_programs_are_found_by_the_directory_they_name(layout: Layout) -> None:
    with process("-m", "kuasar.gateway.main", "--config", layout.config) as ours:
        assert list(processes(layout)) == [ours.pid]
        found = find(layout)
        assert [(leftover.kind, leftover.name) for leftover in found] == [("process", str(ours.pid))]
        assert "kuasar.gateway.main" in str(found[0])


@pytest.mark.parametrize(
    "words",
    [
        ("tail", "-f", "/run/kuasar-utest/containerd.toml"),
        ("-m", "kuasar.gateway.main", "--config", "/run/kuasar-utest2/kuasar.toml"),
    ],
)
def test_strangers_and_other_stacks_are_not_ours(layout: Layout, words: tuple[str, ...]) -> None:
    with process(*words):
        assert processes(layout) == {}


def test_ending_waits_for_the_end_and_forgives_who_has_ended(layout: Layout) -> None:
    with process() as first, process() as second:
        end_processes([first.pid, second.pid], signal.SIGKILL, seconds=10)
        assert first.wait(0) == second.wait(0) == -signal.SIGKILL
        end_processes([first.pid], signal.SIGKILL, seconds=10)


def test_ending_gives_up_at_its_deadline_and_closes_what_it_opened() -> None:
    before = os.listdir("/proc/self/fd")
    with process() as alive:
        end_processes([alive.pid], 0, seconds=0.05)
        assert alive.poll() is None
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_before_is_noted_once_and_only_empty_directories_go(tmp_path: Path) -> None:
    path = tmp_path / "before.json"
    Before.note(str(path))
    noted = json.loads(path.read_text())
    assert noted["ip_forward"] in "01"
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    full.mkdir()
    (full / "of others").touch()
    noted["absent"] = [str(empty), str(full), str(tmp_path / "never made")]
    path.write_text(json.dumps(noted))
    Before.note(str(path))
    Before.restore(str(path))
    assert not empty.exists() and full.exists()


def test_restoring_without_a_note_does_nothing(tmp_path: Path) -> None:
    Before.restore(str(tmp_path / "none"))
