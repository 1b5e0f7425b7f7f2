"""``top``: what sandboxes use, from their records and cgroups."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kuasar.core import cgroup
from kuasar.core.aio import Loop
from tests import needs
from tests.unit.cli.ctl.node_files import Files

SPIN = "print('spinning', flush=True)\nwhile True: pass"


@pytest.fixture
def busy() -> Iterator[str]:
    """A cgroup with a process that uses a processor and some memory."""
    path = f"/kuasar-e{os.getpid()}-top"
    cgroup.create(path)
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", SPIN], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "spinning\n"
        cgroup.enter(path, process.pid)
        yield path
    finally:
        process.kill()
        process.communicate()
        loop = Loop()
        loop.run(cgroup.destroy(loop, path))


@needs.ROOT
def test_the_busy_sandbox_stands_first(files: Files, busy: str) -> None:
    files.sandbox("lazy", "db", holdings=[])
    files.sandbox("abc", "web", holdings=[("cgroup", busy), ("mount", "/x")], containers={"c1": {}, "c2": {}})
    done = files.ctl("top", "--json", "-n", "2", "-s", "0.2")
    assert done.exit_code == 0, done.output
    rounds = [json.loads(text) for text in done.output.splitlines()]
    assert len(rounds) == 2
    for each in rounds:
        first, second = each["sandboxes"]
        assert (first["id"], first["pod"], first["engine"], first["containers"]) == ("abc", "web", "runc", 2)
        assert 0 < first["cpu_percent"] <= 110
        assert first["threads"] == 1
        assert (second["id"], second["cpu_percent"], second["memory_bytes"], second["threads"]) == ("lazy", 0, 0, 0)


def test_the_order_is_chosen(files: Files) -> None:
    for name, created_at in (("b", 20), ("a", 30), ("c", 10)):
        files.sandbox(name, name, created_at=created_at)
    done = files.ctl("top", "-n", "1", "-s", "0.1", "--sort", "age")
    assert [line.split()[0] for line in done.output.splitlines()] == ["ID", "c", "b", "a"]
    assert files.ctl("top", "--sort", "colour").exit_code == 2
    assert files.ctl("top", "-s", "0").exit_code == 2


def test_no_sandboxes(files: Files) -> None:
    done = files.ctl("top", "-n", "1", "-s", "0.1")
    assert done.exit_code == 0
    assert done.output.split()[0] == "ID"
