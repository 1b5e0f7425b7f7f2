"""From the host's tree to the guest's: both ends of the copy, without the channel between."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kuasar.agent.guest.copies import Copies
from kuasar.agent.requests import Body
from kuasar.backends.unshared import copying
from kuasar.core.aio import Loop
from kuasar.core.errors import BackendFailed, Unimplemented


class Guest:
    """The agent's operation, and what it was asked."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.requests: list[Mapping[str, Any]] = []
        self._copies = Copies(str(directory))

    async def ask(self, op: str, body: Mapping[str, Any], deadline: float | None) -> Any:
        assert op == "guest.write"
        self.requests.append(body)
        self._copies.write(Body(dict(body)))
        return {}


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path / "guest")


def copy(loop: Loop, guest: Guest, source: Path) -> Path:
    loop.run(copying.copy_tree(guest.ask, str(source), "containers/c/m0", "mounts[0].source", None))
    return guest.directory / "containers" / "c" / "m0"


def test_a_config_map_as_the_kubelet_writes_it(loop: Loop, guest: Guest, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "..2026").mkdir(parents=True)
    (source / "..2026" / "key").write_text("value")
    (source / "..2026" / "key").chmod(0o640)
    (source / "..data").symlink_to("..2026")
    (source / "key").symlink_to("..data/key")
    os.mkfifo(source / "fifo")
    made = copy(loop, guest, source)
    assert (made / "key").read_text() == "value"
    assert os.readlink(made / "key") == "..data/key"
    assert (made / "..2026" / "key").stat().st_mode == (source / "..2026" / "key").stat().st_mode
    assert sorted(os.listdir(made)) == ["..2026", "..data", "key"]
    assert len(guest.requests) == 1


def test_large_files_go_in_pieces_of_what_a_frame_holds(
    loop: Loop, guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_CHUNK_BYTES", 1000)
    monkeypatch.setattr(copying, "_BATCH_BYTES", 2500)
    source = tmp_path / "source"
    source.mkdir()
    contents = {"a": os.urandom(3000), "b": os.urandom(999), "c": b"", "d": os.urandom(1000)}
    for name, content in contents.items():
        (source / name).write_bytes(content)
    made = copy(loop, guest, source)
    assert {name: (made / name).read_bytes() for name in contents} == contents
    assert len(guest.requests) > 2
    for request in guest.requests:
        assert sum(len(each.get("data", b"")) for each in request["entries"]) <= 2500


def test_a_single_file_also_behind_a_link(loop: Loop, guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    (tmp_path / "link").symlink_to("file")
    assert copy(loop, guest, tmp_path / "link").read_text() == "content"


@pytest.mark.parametrize("limit", ["MOST_BYTES", "MOST_ENTRIES"])
def test_what_is_too_large_is_refused_with_the_ways_out(
    loop: Loop, guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(copying, limit, 2)
    source = tmp_path / "source"
    source.mkdir()
    for name in "abc":
        (source / name).write_text(name)
    with pytest.raises(Unimplemented, match=r"mounts\[0\]\.source: .*/source has more than .*use a block volume") as no:
        copy(loop, guest, source)
    assert (no.value.engine, no.value.capability) == ("firecracker", "shared-directory")


def test_what_cannot_be_read_is_named(loop: Loop, guest: Guest, tmp_path: Path) -> None:
    with pytest.raises(BackendFailed, match=r"mounts\[0\]\.source: cannot copy .*/none: No such file"):
        copy(loop, guest, tmp_path / "none")
