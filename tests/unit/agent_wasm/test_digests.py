"""Digests of files: right, remembered, and forgotten when they must be."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kuasar.agent.drivers.wasm import digests
from kuasar.agent.drivers.wasm.digests import SMALL_FILE, FileDigests

CONTENT = bytes(range(256)) * (SMALL_FILE // 256 + 1)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "digests"
    path.mkdir()
    return path


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files count as settled at once: the clock of a test is not waited for."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 10)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "module"
    path.write_bytes(CONTENT)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def test_small_files_are_read_each_time(tmp_path: Path, directory: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"abc")
    with path.open("rb") as small:
        assert FileDigests(str(directory)).of(small.fileno()) == hashlib.sha256(b"abc").hexdigest()
    assert not os.listdir(directory)


def test_a_large_file_is_remembered(file: int, directory: Path, settled: None) -> None:
    known = FileDigests(str(directory))
    assert known.of(file) == hashlib.sha256(CONTENT).hexdigest()
    [record] = os.listdir(directory)
    assert FileDigests(str(directory)).of(file) == hashlib.sha256(CONTENT).hexdigest()
    assert os.listdir(directory) == [record]


def test_the_record_is_what_is_believed(file: int, directory: Path, settled: None) -> None:
    """Shows that the file is not read again: a record that is right in form and wrong in content is believed."""
    known = FileDigests(str(directory))
    known.of(file)
    [record] = directory.iterdir()
    identity = digests._identity(file)
    assert identity is not None
    digests._store(str(record), identity, "0" * 64)
    assert known.of(file) == "0" * 64


def test_a_changed_file_is_read_again(file: int, directory: Path, settled: None) -> None:
    known = FileDigests(str(directory))
    known.of(file)
    os.pwrite(file, b"!", 0)
    os.utime(file, ns=(0, 0))  # as an attacker would: same size, times set back
    assert known.of(file) == hashlib.sha256(b"!" + CONTENT[1:]).hexdigest()


def test_a_file_that_was_just_written_is_not_remembered(file: int, directory: Path) -> None:
    FileDigests(str(directory)).of(file)
    assert not os.listdir(directory)


@pytest.mark.parametrize("damage", [b"", b"garbage", b"0" * 64 + b" " + b"0" * 64, b"\xff" * 129])
def test_a_damaged_record_is_not_believed(file: int, directory: Path, settled: None, damage: bytes) -> None:
    known = FileDigests(str(directory))
    known.of(file)
    [record] = directory.iterdir()
    record.write_bytes(damage)
    assert known.of(file) == hashlib.sha256(CONTENT).hexdigest()
    assert record.read_bytes() != damage  # and is written anew


def test_an_unwritable_directory_costs_nothing_but_time(file: int, directory: Path, settled: None) -> None:
    directory.rmdir()
    assert FileDigests(str(directory)).of(file) == hashlib.sha256(CONTENT).hexdigest()


def test_a_file_system_that_cannot_be_trusted_is_not_remembered() -> None:
    with open("/proc/self/maps", "rb") as file:
        assert digests._identity(file.fileno()) is None
