"""Remembered digests on overlays, as images are mounted: each container has a mount of its own of the same layers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from kuasar.agent.drivers.wasm import digests, syscalls

pytestmark = pytest.mark.root
CONTENT = bytes(range(256)) * (digests.SMALL_FILE // 256 + 1)


@contextmanager
def overlay(base: Path, name: str, *lower: Path) -> Iterator[Path]:
    """An overlay with an upper layer of its own on ``lower``."""
    upper, work, merged = (base / f"{name}-{part}" for part in ("upper", "work", "merged"))
    for directory in (upper, work, merged):
        directory.mkdir()
    options = f"lowerdir={':'.join(map(str, lower))},upperdir={upper},workdir={work}"
    syscalls.mount("overlay", str(merged), "overlay", 0, options)
    try:
        yield merged
    finally:
        syscalls.unmount(str(merged), 0)


def identity(path: Path) -> str | None:
    with path.open("rb") as file:
        return digests._identity(file.fileno())


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    path = tmp_path / "layer"
    path.mkdir()
    (path / "module").write_bytes(CONTENT)
    (tmp_path / "base").mkdir()
    return path


def test_two_containers_of_one_image_share_what_is_known(tmp_path: Path, layer: Path) -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(overlay(tmp_path, n, layer, tmp_path / "base")) for n in ("one", "two"))
        assert identity(first / "module") is not None
        assert identity(first / "module") == identity(second / "module")


def test_what_one_container_changes_is_another_file(tmp_path: Path, layer: Path) -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(overlay(tmp_path, n, layer, tmp_path / "base")) for n in ("one", "two"))
        before = identity(second / "module")
        with (first / "module").open("r+b") as file:  # copied up
            file.write(b"!")
        assert identity(first / "module") != before
        assert identity(second / "module") == before
        with (first / "module").open("rb") as file:
            known = digests.FileDigests(str(tmp_path)).of(file.fileno())
        assert known == hashlib.sha256(b"!" + CONTENT[1:]).hexdigest()


def test_layers_on_different_devices_are_not_trusted(tmp_path: Path, layer: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    syscalls.mount("tmpfs", str(other), "tmpfs", 0, "size=8m")
    try:
        with overlay(tmp_path, "one", layer, other) as merged:
            assert identity(merged / "module") is None
    finally:
        syscalls.unmount(str(other), 0)
