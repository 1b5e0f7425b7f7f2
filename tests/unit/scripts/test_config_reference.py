"""The configuration's reference says what the code says."""

from __future__ import annotations

import dataclasses

from kuasar.core.config import Config, Containerd, Debug, Engine, Gateway, Metrics, Sandboxer, Supervisor, Tracing
from scripts.config_reference import PAGE, page


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m scripts.config_reference"


def test_every_key_is_there_and_explained() -> None:
    lines = page().partition("## Top level")[2].splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| `")]
    named = {row[0].removeprefix("| ").strip("`") for row in rows}
    kinds = (Gateway, Metrics, Tracing, Containerd, Supervisor, Debug, Sandboxer, Engine)
    sections = {kind.__name__.lower() for kind in kinds} | {"sandboxers", "engines", "path"}
    for kind in (Config, *kinds):
        keys = {field.name for field in dataclasses.fields(kind)}
        assert keys - sections <= named | sections, kind
    assert not [row[0] for row in rows if len(row[3].rstrip(" |")) < 10], "keys without an explanation"
