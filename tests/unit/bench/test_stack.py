"""What the benchmark's own stack has beyond the shipped configuration, and how its arguments are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from kuasar.core.config import load
from scripts.layout import Layout, runtimes
from tests.bench.__main__ import main
from tests.bench.contestants import COLD, CONTESTANTS, LARGE_MODULE, MACHINE, MODULES, SHIM, SMALL_MODULE
from tests.bench.modules import modules_image
from tests.bench.node import parse_phases
from tests.bench.under_test import SETTINGS, layout


def test_machines_that_boot_differ_from_the_others_in_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "kuasar.toml"
    path.write_text(SETTINGS)
    config = load(str(path))
    cold, machine = (config.engine(config.sandboxers[who.handler].engine) for who in (COLD, MACHINE))
    assert machine.template
    assert not cold.template
    assert {**vars(machine), "template": False} == vars(cold)


def test_the_stack_has_every_handler_that_is_measured() -> None:
    assert {who.handler for who in CONTESTANTS} - {SHIM.handler} <= runtimes(layout())
    assert COLD.handler not in runtimes(Layout())


def test_the_image_has_every_module() -> None:
    names = {entry.path for entry in modules_image().entries}
    for command in (MODULES.hello, MODULES.idle, SMALL_MODULE, LARGE_MODULE):
        assert command[0].removeprefix("/") in names


def test_phases_keep_their_order_and_repeated_names() -> None:
    assert list(parse_phases("setup=1.5ms vmm=100ms setup=2.0ms").items()) == [
        ("setup", 1.5),
        ("vmm", 100.0),
        ("setup 2", 2.0),
    ]
    assert parse_phases("") == {}


def test_every_contestant_can_be_given_another_handler(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(f"--{who.name} HANDLER" in said for who in CONTESTANTS)
