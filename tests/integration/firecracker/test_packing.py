"""Root file systems packed by the real mkfs.erofs, and read back."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kuasar.agent import kernel
from kuasar.backends.making import MakerHost
from kuasar.backends.unshared.packing import Packed, Packer
from kuasar.core.aio import Loop
from kuasar.core.errors import BackendFailed
from tests.needs import ROOT

pytestmark = [
    ROOT,
    pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="mkfs.erofs is not installed (package erofs-utils)"),
]


class Bench:
    """A packer with a cache, and layers to pack."""

    def __init__(self, directory: Path, mkfs: str = "mkfs.erofs") -> None:
        self.directory = directory
        self.loop = Loop()
        self.host = MakerHost(self.loop, str(directory / "sandbox"))
        (directory / "sandbox").mkdir(exist_ok=True)
        self.packer = Packer(self.host, mkfs, str(directory / "cache"))

    def layer(self, name: str, **files: str) -> str:
        path = self.directory / name
        path.mkdir()
        for file, text in files.items():
            (path / file).write_text(text)
        return str(path)

    def pack(self, rootfs: list[Any], directory: str = "", seconds: float = 60.0) -> Packed:
        return self.loop.run(self.packer.pack("c", rootfs, directory, time.monotonic() + seconds))

    @property
    def images(self) -> list[str]:
        return sorted(os.listdir(self.directory / "cache" / "images"))

    def close(self) -> None:
        self.host.close()
        self.loop.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def overlay(*lower: str, upper: str = "") -> list[Any]:
    """As containerd gives it, uppermost first."""
    options = [f"lowerdir={':'.join(lower)}"]
    options += [f"upperdir={upper}", f"workdir={upper}.work"] if upper else []
    return [{"type": "overlay", "source": "overlay", "options": options}]


def content(image: str, at: Path) -> dict[str, str]:
    """What a machine sees of it."""
    at.mkdir(exist_ok=True)
    device = subprocess.check_output(["losetup", "--find", "--show", "-r", image], text=True).strip()
    try:
        kernel.mount(device, str(at), "erofs", kernel.MS_RDONLY)
        try:
            return {path.name: path.read_text() for path in at.iterdir()}
        finally:
            kernel.umount(str(at))
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_layers_are_packed_once(bench: Bench, tmp_path: Path) -> None:
    lower, middle = bench.layer("lower", a="1", b="1"), bench.layer("middle", b="2", c="2")
    os.mknod(f"{middle}/gone", 0o20000 | 0o600, os.makedev(0, 0))  # a whiteout
    (tmp_path / "lower" / "gone").write_text("x")
    upper = bench.layer("upper")
    (tmp_path / "upper.work").mkdir()
    first = bench.pack(overlay(middle, lower, upper=upper))
    assert content(first.path, tmp_path / "mnt") == {"a": "1", "b": "2", "c": "2"}
    made = os.stat(first.path).st_mtime_ns
    os.utime(first.path, (0, 0))
    again = bench.pack(overlay(middle, lower, upper=upper))
    assert again == first == Packed(first.path, True)
    assert os.stat(first.path).st_mtime_ns > made, "it was used"
    assert len(bench.images) == 1
    assert os.listdir(bench.host.directory) == []


def test_another_layer_of_the_same_name_is_another_image(bench: Bench, tmp_path: Path) -> None:
    layer = bench.layer("layer", a="1")
    first = bench.pack(overlay(layer))
    os.rename(layer, f"{layer}.old")
    bench.layer("layer", a="2")
    second = bench.pack(overlay(layer))
    assert first.path != second.path
    assert content(second.path, tmp_path / "mnt") == {"a": "2"}


def test_what_was_written_above_the_layers_is_in_an_image_of_its_own(bench: Bench, tmp_path: Path) -> None:
    lower, upper = bench.layer("lower", a="1"), bench.layer("upper", a="2")
    (tmp_path / "upper.work").mkdir()
    image = bench.pack(overlay(lower, upper=upper))
    assert not image.is_kept
    assert content(image.path, tmp_path / "mnt") == {"a": "2"}
    assert os.listdir(bench.host.directory) == []


def test_a_bundle_s_own_directory(bench: Bench, tmp_path: Path) -> None:
    directory = bench.layer("rootfs", a="1")
    image = bench.pack([], directory)
    assert not image.is_kept
    assert content(image.path, tmp_path / "mnt") == {"a": "1"}


def test_images_that_nobody_has_used_for_a_week_go(bench: Bench) -> None:
    old = bench.pack(overlay(bench.layer("old", a="1")))
    week = time.time() - 8 * 86400
    os.utime(old.path, (week, week))
    bench.pack(overlay(bench.layer("new", a="1")))
    assert not os.path.exists(old.path)


def test_a_program_that_is_missing_is_named_with_the_ways_out(tmp_path: Path) -> None:
    bench = Bench(tmp_path, f"{tmp_path}/none")
    try:
        with pytest.raises(BackendFailed, match=r"/none does not exist; install erofs-utils, .*blockfile snapshotter"):
            bench.pack(overlay(bench.layer("layer")))
    finally:
        bench.close()


def test_a_program_that_fails_leaves_nothing_and_its_words_are_told(tmp_path: Path) -> None:
    script = tmp_path / "mkfs"
    script.write_text('#!/bin/sh\necho half >"$2"\necho no space left >&2\nexit 1\n')
    script.chmod(0o755)
    bench = Bench(tmp_path, str(script))
    try:
        two = [bench.layer("one"), bench.layer("two")]
        with pytest.raises(BackendFailed, match="mkfs exited with 1: no space left"):
            bench.pack(overlay(*two))
        assert bench.images == []
        assert os.listdir(bench.host.directory) == []
    finally:
        bench.close()
