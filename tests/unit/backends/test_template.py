"""Templates on disk: found whole or not at all, sparse, and set aside when they are not what was written."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from kuasar.backends.template import Description, Templates, data_of, digest_of_data, write_sparse

PAGE = 4096
SIZE = 64 * PAGE
KEY = "k" * 24


@pytest.fixture
def templates(tmp_path: Path) -> Templates:
    """Of a node."""
    return Templates(str(tmp_path / "templates"), str(tmp_path / "verified"))


def memory(*pages: int) -> int:
    """A memory file with something on the given pages; some others were touched and are zero again."""
    fd = os.memfd_create("test")
    os.ftruncate(fd, SIZE)
    for page in (*pages, 40):
        os.pwrite(fd, bytes([page % 255 + 1]) * PAGE, page * PAGE)
    os.pwrite(fd, bytes(PAGE), 40 * PAGE)
    return fd


def make(templates: Templates) -> None:
    directory = templates.new_directory(KEY)
    source = memory(0, 1, 7, 63)
    written = write_sparse(source, f"{directory}/memory")
    os.close(source)
    Path(directory, "state").write_bytes(b"state")
    description = Description(
        key=KEY,
        memory_bytes=SIZE,
        data_bytes=written,
        memory_sha256=digest_of_data(f"{directory}/memory"),
        state_sha256=hashlib.sha256(b"state").hexdigest(),
        boot_seconds=1.5,
        created_at=1,
    )
    templates.publish(directory, description)


def test_a_memory_that_can_only_be_mapped_is_filled_with_the_same(templates: Templates) -> None:
    make(templates)
    template = templates.find(KEY)
    assert template is not None
    source, target = memory(0, 1, 7, 63), os.memfd_create("test")
    try:
        os.ftruncate(target, SIZE)
        template.fill_huge_pages(target)
        assert os.pread(target, SIZE, 0) == os.pread(source, SIZE, 0)
    finally:
        os.close(source)
        os.close(target)


def test_what_is_zero_is_a_hole_and_a_copy_is_equal(templates: Templates) -> None:
    make(templates)
    template = templates.find(KEY)
    assert template is not None
    assert template.description.data_bytes == 4 * PAGE
    source, copy = memory(0, 1, 7, 63), template.copy_memory()
    try:
        assert os.pread(copy, SIZE, 0) == os.pread(source, SIZE, 0)
        assert os.fstat(copy).st_blocks * 512 < SIZE / 2
        assert sum(end - start for start, end in data_of(copy)) <= 5 * PAGE
    finally:
        os.close(source)
        os.close(copy)


SEEK = """
import sys
from kuasar.backends.template import Templates
directory, verified, key = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
nodes = [Templates(directory, f"{verified}-{number}") for number in range(200)]
print([node.find(key) is not None for node in nodes].count(False), flush=True)
"""


def test_many_workers_find_a_template_for_the_first_time_at_once(templates: Templates, tmp_path: Path) -> None:
    """Each notes that it has looked at all bytes; none may trip over another's note."""
    make(templates)
    argv = [sys.executable, "-c", SEEK, templates.directory, str(tmp_path / "seen"), KEY]
    with ExitStack() as stack:
        workers = [
            stack.enter_context(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(4)
        ]
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        assert [worker.communicate(timeout=60)[0] for worker in workers] == ["0\n"] * 4


def test_a_missing_template_is_none(templates: Templates) -> None:
    assert templates.find(KEY) is None


@pytest.mark.parametrize("file", ["state", "memory", "template.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "removed"])
def test_a_damaged_template_is_set_aside(templates: Templates, file: str, damage: str) -> None:
    make(templates)
    path = Path(templates.directory, KEY, file)
    data = path.read_bytes()
    if damage == "removed":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[:-1])
    else:
        path.write_bytes(data[:2] + bytes([data[2] ^ 1]) + data[3:])
    assert templates.find(KEY) is None
    if not (file == "template.json" and damage == "removed"):  # that is a directory nobody knows
        assert (Path(templates.directory) / f"{KEY}.bad").is_dir() or damage == "removed"
    make(templates)
    assert templates.find(KEY) is not None


def test_the_memory_is_looked_at_again_only_when_the_file_is_another(templates: Templates, tmp_path: Path) -> None:
    make(templates)
    assert templates.find(KEY) is not None
    marks = tmp_path / "verified" / KEY
    before = marks.stat().st_mtime_ns
    assert templates.find(KEY) is not None
    assert marks.stat().st_mtime_ns == before


def test_another_format_or_key_is_not_used(templates: Templates) -> None:
    make(templates)
    path = Path(templates.directory, KEY, "template.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    assert templates.find(KEY) is None


def test_what_nobody_uses_is_removed(templates: Templates) -> None:
    make(templates)
    unfinished = Path(templates.new_directory("other"))
    aside, unused = (unfinished.with_name(name) for name in ("another.bad", "unused"))
    for directory in (aside, unused):
        directory.mkdir()
    hour_ago = time.time() - 3600
    for directory in (unfinished, aside, unused, Path(templates.directory, KEY)):
        os.utime(directory, (hour_ago, hour_ago))
    assert sorted(templates.prune()) == sorted([unfinished.name, "another.bad"])
    os.utime(unused, (0, 0))
    os.utime(Path(templates.directory, KEY), (0, 0))
    assert templates.find(KEY) is not None, "which says that it is used"
    assert templates.prune() == ["unused"]
