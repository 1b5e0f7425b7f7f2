"""Copies of the host's files: what is sent is what is there, and nothing goes beside its place."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from kuasar.agent.guest.copies import Copies
from kuasar.agent.requests import Body
from kuasar.core.errors import BackendFailed, InvalidArgument

FILE, DIRECTORY, LINK = stat.S_IFREG | 0o640, stat.S_IFDIR | 0o750, stat.S_IFLNK | 0o777
OURS = {"uid": os.getuid(), "gid": os.getgid()}


def write(directory: Path, name: str, *entries: dict[str, Any]) -> None:
    Copies(str(directory)).write(Body({"name": name, "entries": [{**OURS, **each} for each in entries]}))


def test_a_tree(tmp_path: Path) -> None:
    write(
        tmp_path,
        "containers/c/m0",
        {"path": "", "mode": DIRECTORY},
        {"path": "..data", "mode": LINK, "link": "..2026"},
        {"path": "..2026", "mode": DIRECTORY},
        {"path": "..2026/token", "mode": FILE, "data": b"sec"},
        {"path": "..2026/token", "mode": FILE, "data": b"ret", "offset": 3},
        {"path": "empty", "mode": FILE},
    )
    top = tmp_path / "containers" / "c" / "m0"
    assert (top / "..data" / "token").read_bytes() == b"secret"
    assert stat.S_IMODE((top / "..2026" / "token").stat().st_mode) == 0o640
    assert stat.S_IMODE(top.stat().st_mode) == 0o750
    assert (top / "empty").read_bytes() == b""


def test_a_file_alone_and_once_more(tmp_path: Path) -> None:
    write(tmp_path, "files/hosts", {"path": "", "mode": FILE, "data": b"a long one"})
    file = tmp_path / "files" / "hosts"
    inode = file.stat().st_ino
    write(tmp_path, "files/hosts", {"path": "", "mode": FILE, "data": b"short"})
    assert (file.read_bytes(), file.stat().st_ino) == (b"short", inode), "what is mounted sees the change"
    write(tmp_path, "files", {"path": "link", "mode": LINK, "link": "a"}, {"path": "link", "mode": LINK, "link": "b"})
    assert os.readlink(tmp_path / "files" / "link") == "b"


def test_removing(tmp_path: Path) -> None:
    write(tmp_path, "containers/c/m0", {"path": "", "mode": DIRECTORY}, {"path": "file", "mode": FILE})
    write(tmp_path, "containers/d/m0", {"path": "", "mode": FILE})
    for _ in range(2):
        Copies(str(tmp_path)).remove(Body({"name": "containers/c"}))
    assert os.listdir(tmp_path / "containers") == ["d"]
    Copies(str(tmp_path)).remove(Body({"name": "containers/d/m0"}))
    assert os.listdir(tmp_path / "containers" / "d") == []


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/x", "a//b", ".", "a\0b"])
def test_a_path_that_leads_out_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(InvalidArgument, match=r"entries\[0\]\.path: .* is not a path below the name"):
        write(tmp_path / "copies", "m0", {"path": path, "mode": FILE})
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["", "..", "a/../b", "/a", "a/"])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="name: "):
        write(tmp_path, name, {"path": "", "mode": FILE})
    with pytest.raises(InvalidArgument, match="name: "):
        Copies(str(tmp_path)).remove(Body({"name": name}))


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    link = {"path": "link", "mode": LINK, "link": str(outside)}
    with pytest.raises(InvalidArgument, match=r"entries\[1\]\.path: .* leads through a symbolic link"):
        write(tmp_path, "m0", link, {"path": "link/file", "mode": FILE})
    with pytest.raises(BackendFailed, match=r"entries\[0\]\.path: cannot write .*/link: Too many levels"):
        write(tmp_path, "m0", {"path": "link", "mode": FILE})
    assert os.listdir(outside) == []


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"mode": stat.S_IFIFO | 0o600}, r"entries\[0\]\.mode: 10600 is no directory, file or symbolic link"),
        ({"mode": FILE, "offset": -1}, r"entries\[0\]\.offset: -1 is negative"),
        ({"mode": "x"}, r"entries\[0\]\.mode: int is needed"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, entry: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        write(tmp_path, "m0", {"path": "", **entry})
