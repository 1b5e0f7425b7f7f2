"""One path: what is there, putting something there, and back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kuasar.core.errors import BackendFailed, InvalidArgument
from kuasar.install.files import ABSENT, OTHER, Found, file, link, look, make_parents, put, remove_empty


def test_a_file_comes_back_with_all_its_marks(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"\0\xff old")
    path.chmod(0o640)
    os.utime(path, ns=(1, 1_000_000_007))
    before = look(str(path))
    put(str(path), file(b"new", 0o600))
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)
    put(str(path), Found.from_json(before.to_json()))
    assert look(str(path)) == before
    assert path.stat().st_mtime_ns == 1_000_000_007


def test_links_and_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "l")
    assert look(path).kind == ABSENT
    put(path, link("/some/where"))
    assert os.readlink(path) == "/some/where"
    assert look(path).digest == link("/some/where").digest != file(b"/some/where").digest
    put(path, file(b"x"))
    assert not os.path.islink(path)
    for _ in range(2):
        put(path, Found())
        assert os.listdir(tmp_path) == []
    assert look(f"{tmp_path}/no/such").kind == ABSENT
    put(f"{tmp_path}/no/such", Found())
    assert look(str(tmp_path)).kind == OTHER


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "kept").write_text("x")
    with pytest.raises(BackendFailed, match="cannot be written"):
        put(str(tmp_path / "d"), file(b"new"))
    assert sorted(os.listdir(tmp_path)) == ["d"]
    with pytest.raises(BackendFailed, match="No such file"):
        put(str(tmp_path / "none" / "f"), file(b"new"))


def test_directories_go_as_they_came_unless_others_use_them(tmp_path: Path) -> None:
    made = make_parents(str(tmp_path / "a" / "b" / "c" / "file"))
    assert made == [str(tmp_path / each) for each in ("a", "a/b", "a/b/c")]
    assert make_parents(str(tmp_path / "a" / "b" / "file")) == []
    (tmp_path / "a" / "theirs").touch()
    remove_empty(made)
    assert sorted(os.listdir(tmp_path / "a")) == ["theirs"]


@pytest.mark.parametrize(
    "value", [None, {}, {**Found().to_json(), "kind": "socket"}, {**Found().to_json(), "content": "ä"}]
)
def test_a_description_that_is_none(value: object) -> None:
    with pytest.raises(InvalidArgument, match="not the description of a file"):
        Found.from_json(value)
