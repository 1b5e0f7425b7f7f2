"""The configuration that we ship shows every key, with its default."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from kuasar.core.config import Config, Engine, load
from kuasar.core.engines import BACKEND_MODULES

PROGRAMS = {"runc": "runc", "gvisor": "runsc", "quark": "quark", "wasmedge": "wasmedge"}
"""What the file says instead of nothing, because it shows what may stand there."""
SHIPPED = Path(__file__).parents[2] / "etc" / "kuasar.toml"


def test_it_is_valid_and_says_the_defaults() -> None:
    config = dataclasses.replace(load(str(SHIPPED)), path="")
    engines = {kind: Engine(kind=kind, binary=PROGRAMS.get(kind, "")) for kind in BACKEND_MODULES}
    assert config == dataclasses.replace(Config(), engines=engines)
