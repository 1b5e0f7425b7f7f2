"""Which directories want a worker."""

from __future__ import annotations

from pathlib import Path

from kuasar.core.config import Config
from kuasar.supervisor.records import find_recorded, record_path


def test_only_valid_ids_with_a_record(tmp_path: Path) -> None:
    config = Config(state_dir=str(tmp_path))
    for name in ("b", "a-1.x", "empty", "_hidden", "x..y", "-o", "x" * 77):
        Path(config.sandboxes_dir, name).mkdir(parents=True)
        if name != "empty":
            Path(record_path(config, name)).touch()
    Path(config.sandboxes_dir, "file").touch()
    Path(config.sandboxes_dir, "dir", "sandbox.msgpack").mkdir(parents=True)
    assert list(find_recorded(config)) == ["a-1.x", "b"]


def test_no_directory_no_sandboxes(tmp_path: Path) -> None:
    assert list(find_recorded(Config(state_dir=str(tmp_path / "none")))) == []
