"""The configuration that we ship shows every key, with its default."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from kuasar.core.config import Config, Engine, load

SHIPPED = Path(__file__).parents[2] / "etc" / "kuasar.toml"


def test_it_is_valid_and_says_the_defaults() -> None:
    config = dataclasses.replace(load(str(SHIPPED)), path="")
    defaults = Config()
    engines = {**defaults.engines, "runc": Engine(kind="runc", binary="runc")}  # shown, as it may also be crun
    assert config == dataclasses.replace(defaults, engines=engines)
