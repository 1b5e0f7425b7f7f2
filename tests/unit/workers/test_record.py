"""The record of a sandbox: atomic, versioned, and a damaged one is set aside with its reason."""

from __future__ import annotations

import os
import tempfile
import zlib
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuasar.core.errors import BackendFailed
from kuasar.core.records import RECORD, read, seal
from kuasar.workers.pod import Dns, PodSpec
from kuasar.workers.record import Record, SandboxDirectory


def make(tmp_path: Path) -> SandboxDirectory:
    directory = SandboxDirectory(str(tmp_path), "pod1")
    directory.next_generation()
    directory.record = Record(
        id="pod1",
        namespace="k8s.io",
        sandboxer="s",
        engine="runc",
        netns="",
        bundle="",
        pod=PodSpec(dns=Dns(["9.9.9.9"])),
    )
    return directory


def test_a_successor_reads_what_was_written(tmp_path: Path) -> None:
    directory = make(tmp_path)
    directory.acquiring("cgroup", "/a")
    directory.acquiring("cgroup", "/a")
    directory.acquiring("socket", "/b")
    directory.released("cgroup", "/a")
    directory.released("cgroup", "/never")
    read = SandboxDirectory(str(tmp_path), "pod1").load()
    assert read == directory.record
    assert read is not None
    assert read.holdings == [("socket", "/b")]


def test_generations_count_up_and_survive_damage(tmp_path: Path) -> None:
    directory = SandboxDirectory(str(tmp_path), "pod1")
    assert [directory.next_generation(), directory.next_generation()] == [1, 2]
    Path(directory.path, "generation").write_text("rubbish")
    assert directory.next_generation() > 2


def test_nothing_there_is_not_an_error(tmp_path: Path) -> None:
    assert SandboxDirectory(str(tmp_path), "pod1").load() is None


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (b"", "damaged"),
        (b"\xc1", "damaged"),
        (msgpack.packb({"version": 1}), "checksum"),
        (seal({"version": 99}), "version 99"),
        (seal({"version": 1, "id": "pod1"}), "missing fields"),
    ],
)
def test_damage_is_set_aside_with_its_reason(tmp_path: Path, damage: bytes, reason: str) -> None:
    directory = make(tmp_path)
    Path(directory.path, RECORD).write_bytes(damage)
    with pytest.raises(BackendFailed, match=reason):
        directory.load()
    assert Path(directory.path, f"{RECORD}.damaged").read_bytes() == damage
    assert SandboxDirectory(str(tmp_path), "pod1").load() is None


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    directory = make(tmp_path)
    directory.save()
    whole = Path(directory.path, RECORD).read_bytes()
    for length in range(0, len(whole), 7):
        Path(directory.path, RECORD).write_bytes(whole[:length])
        with pytest.raises(BackendFailed):
            SandboxDirectory(str(tmp_path), "pod1").load()


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    directory = make(tmp_path)
    directory.acquiring("cgroup", "/kubepods/mine")
    path = Path(directory.path, RECORD)
    whole = path.read_bytes()
    for bit in range(len(whole) * 8):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(BackendFailed, match="checksum"):
            SandboxDirectory(str(tmp_path), "pod1").load()


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_in_words(data: bytes) -> None:
    for content in (data, zlib.crc32(data).to_bytes(4, "big") + data):
        with tempfile.TemporaryDirectory() as top:
            directory = make(Path(top))
            Path(directory.path, RECORD).write_bytes(content)
            shown = read(top, "pod1")
            assert shown is not None
            with pytest.raises(BackendFailed, match="is damaged"):
                directory.load()


def test_a_record_of_another_sandbox_is_refused(tmp_path: Path) -> None:
    directory = make(tmp_path)
    directory.save()
    os.rename(directory.path, tmp_path / "pod2")
    with pytest.raises(BackendFailed, match="belongs to sandbox 'pod1'"):
        SandboxDirectory(str(tmp_path), "pod2").load()


def test_remove_is_harmless_to_repeat(tmp_path: Path) -> None:
    directory = make(tmp_path)
    directory.save()
    directory.remove()
    directory.remove()
    assert not os.path.exists(directory.path)
