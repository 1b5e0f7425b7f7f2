"""A saved machine: packed, unpacked, rewritten for a clone."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from kuasar.backends.base import User
from kuasar.backends.cloud_hypervisor import bodies
from kuasar.backends.cloud_hypervisor.state import CONFIG, MEMORY, STATE, State
from kuasar.core.errors import BackendFailed
from tests.unit.backends.cloud_hypervisor.test_bodies import GUEST

SAVED = State({**bodies.create(GUEST), "more": 1}, '{"id": "vm"}')
OTHER = replace(GUEST, kernel="/k", initramfs="/i", root_disk="/r", vsock="v.sock")
US = User(os.getuid(), os.getgid())


def test_it_comes_back_as_it_was() -> None:
    assert State.unpack(SAVED.pack()) == SAVED


def test_a_clone_has_files_and_sockets_of_its_own_and_everything_else_alike() -> None:
    clone = SAVED.for_clone(OTHER)
    assert clone == State({**bodies.create(OTHER), "more": 1}, SAVED.devices)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    directory = tmp_path / "restored"
    for _ in range(2):  # what an earlier attempt has left is no hindrance
        SAVED.write(str(directory), "/proc/self/fd/9", US)
    assert sorted(os.listdir(directory)) == sorted([CONFIG, STATE, MEMORY])
    assert os.readlink(directory / MEMORY) == "/proc/self/fd/9"
    assert State.read(str(directory)) == SAVED


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"config": 1, "devices": ""}', b"\xff"])
def test_a_damaged_state_is_refused(data: bytes) -> None:
    with pytest.raises(BackendFailed, match="the state of the template is damaged"):
        State.unpack(data)


@pytest.mark.parametrize("name", ["disks", "vsock", "payload"])
def test_what_a_configuration_lacks_is_named(name: str) -> None:
    config = {key: value for key, value in SAVED.config.items() if key != name}
    with pytest.raises(BackendFailed, match=f"the template's configuration has no '{name}'"):
        State(config, "").for_clone(OTHER)


@pytest.mark.parametrize("missing", [CONFIG, STATE])
def test_a_snapshot_without_a_file_is_refused(tmp_path: Path, missing: str) -> None:
    for name in (CONFIG, STATE):
        (tmp_path / name).write_text(json.dumps({}))
    (tmp_path / missing).unlink()
    with pytest.raises(BackendFailed, match=r"the snapshot in .* cannot be read"):
        State.read(str(tmp_path))
