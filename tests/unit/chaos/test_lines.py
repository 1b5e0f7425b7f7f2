"""Which logs are right, and that reading them gives their disk back."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.chaos.lines import END_CODE, STOP_FILE, WIDTH, WRITES, Lines, Stream


def line(number: int) -> bytes:
    return b"%0*d" % (WIDTH, number)


def fed(*entries: bytes, gaps: int = 0) -> list[str]:
    """What is wrong with these lines; one that ends with "…" is the first part of the next."""
    stream = Stream("stdout")
    for _ in range(gaps):
        stream.allow_gap()
    for entry in entries:
        stream.feed(entry.removesuffix(b"..."), not entry.endswith(b"..."))
    return stream.unfinished()


def test_whole_streams_are_right() -> None:
    assert fed(b"end 0") == []
    assert fed(line(0), line(1), line(2), b"end 3") == []
    assert fed(line(0), line(1)[:7] + b"...", line(1)[7:], b"end 2") == []


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([line(1), b"end 2"], "1 lines are missing from 0 on"),
        ([line(0), line(3), b"end 4"], "2 lines are missing from 1 on"),
        ([line(0), line(1), line(1), b"end 2"], "1 comes after 1"),
        ([line(0), line(1), b"end 3"], "1 lines are missing from 2 on"),
        ([line(0), line(1)[3:], line(2), b"end 3"], "torn after 0: " + repr(line(1)[3:])),
        ([line(0), line(1)], "ends after 1"),
    ],
)
def test_what_is_wrong_is_named(entries: list[bytes], words: str) -> None:
    assert f"stdout: {words}" in fed(*entries)


def test_a_death_of_containerd_may_cost_one_gap() -> None:
    assert fed(line(0), line(5), b"end 6", gaps=1) == []
    assert fed(line(0), line(4)[9:], line(5), b"end 6", gaps=1) == []
    assert fed(line(0), line(1)[:9] + b"...", line(4)[9:] + b"x", line(5), b"end 6", gaps=1) == []
    assert fed(line(0), line(5), line(9), b"end 10", gaps=2) == []
    assert fed(line(0), line(5), line(9), b"end 10", gaps=1) == ["stdout: 3 lines are missing from 6 on"]
    assert fed(line(0), line(5), line(5), b"end 6", gaps=2) == ["stdout: 5 comes after 5"]


def entry(stream: str, text: bytes) -> bytes:
    return b"2026-01-01T00:00:00.000000000Z %s F %s\n" % (stream.encode(), text)


def test_a_log_is_read_while_it_grows_and_gives_its_blocks_back(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = Lines(str(path))
    lines.read()  # it is not there yet
    count = 0
    with path.open("ab", buffering=0) as log:
        for _ in range(6):
            chunk = b"".join(entry(name, line(n)) for n in range(count, count + 5000) for name in ("stdout", "stderr"))
            count += 5000
            log.write(chunk[:-10])  # entries are not always whole when they are read
            lines.read()
            log.write(chunk[-10:])
        log.write(entry("stdout", b"end %d" % count) + entry("stderr", b"end %d" % count))
    lines.read()
    assert (lines.count, lines.ended, lines.wrong()) == (2 * count, True, [])
    lines.close()
    size = os.stat(path)
    assert size.st_size > 5 << 20
    assert size.st_blocks * 512 < 2 << 20


def test_the_writer_writes_what_is_expected(tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    argv = ["/usr/bin/busybox", *(word.replace(STOP_FILE, str(stop)) for word in WRITES)]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as writer:
        assert writer.stdout is not None
        stream = Stream("stdout")
        for number, text in enumerate(writer.stdout):
            stream.feed(text.rstrip(b"\n"), True)
            if number == 1000:
                stop.touch()
    assert writer.returncode == END_CODE
    assert stream.unfinished() == []
    assert stream.ended_at == stream.count > 1000
