"""A file that others hold open is cut in place."""

from __future__ import annotations

import os
from pathlib import Path

from kuasar.core.aio import Loop
from kuasar.workers.logfiles import halve, keep_small


def test_the_younger_half_stays_from_the_beginning_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("ab", buffering=0) as writer:  # as an agent holds it
        for number in range(1000):
            writer.write(b"line %06d\n" % number)
        halve(str(path), 6000)
        writer.write(b"next\n")
    lines = path.read_bytes().splitlines()
    assert lines[-1] == b"next"
    assert lines[0] == b"line %06d" % (1000 - len(lines) + 1)
    assert 2900 < path.stat().st_size <= 3005


def test_a_file_that_grows_is_looked_after(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 99 + b"\n" + b"y\n" * 10)
    loop = Loop()
    task = loop.spawn(keep_small(loop, str(path), 100))

    async def once() -> None:
        await loop.sleep(0)

    loop.run(once())
    assert path.read_bytes() == b"y\n" * 10
    task.cancel()
    loop.close()


def test_what_is_not_there_or_has_no_limit_is_left_alone(tmp_path: Path) -> None:
    loop = Loop()
    loop.run(keep_small(loop, str(tmp_path / "none"), 0))
    task = loop.spawn(keep_small(loop, str(tmp_path / "none"), 1))
    task.cancel()
    loop.close()
    assert os.listdir(tmp_path) == []
