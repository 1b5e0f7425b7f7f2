"""What an uninstallation removes, and what it never does."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kuasar.core.errors import BackendFailed, NotFound
from kuasar.install.files import file, put
from kuasar.install.work import all_or_nothing, remove_data
from tests import needs


def test_data_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "link").symlink_to(tmp_path / "other")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "kept").touch()
    remove_data(["/a", "/none"], str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["other"]
    assert os.listdir(tmp_path / "other") == ["kept"]


@needs.ROOT
def test_nothing_is_removed_through_a_mount(tmp_path: Path) -> None:
    inside = tmp_path / "a" / "the sandbox"
    inside.mkdir(parents=True)
    (tmp_path / "b").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(inside)], check=True)
    try:
        with pytest.raises(BackendFailed, match=r"something is mounted on .*/a/the sandbox"):
            remove_data(["/b", "/a"], str(tmp_path))
        assert inside.is_dir()
        assert (tmp_path / "b").is_dir()
    finally:
        subprocess.run(["umount", str(inside)], check=True)
    remove_data(["/b", "/a"], str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_all_or_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "f")
    with all_or_nothing() as undo:
        undo.callback(os.unlink, path)
        put(path, file(b"x"))
    assert os.path.exists(path)
    with pytest.raises(BackendFailed, match="the cause\neverything was put back as it was"), all_or_nothing() as undo:
        undo.callback(os.unlink, path)
        raise NotFound("the cause")
    assert not os.path.exists(path)
    with (
        pytest.raises(BackendFailed, match="the cause\nand taking it back failed, too: /none"),
        all_or_nothing() as undo,
    ):
        undo.callback(put, "/none/at/all", file(b""))
        raise NotFound("the cause")
    with pytest.raises(KeyboardInterrupt), all_or_nothing() as undo:
        undo.callback(put, path, file(b"undone"))
        raise KeyboardInterrupt
    assert Path(path).read_text() == "undone"
