"""README's table of engines and features says what the backends declare."""

from __future__ import annotations

import pytest

from kuasar.backends.base import Capability
from kuasar.backends.registry import require_backend
from kuasar.core.engines import BACKEND_MODULES
from scripts.engines_table import PAGE, table, whole


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == whole(text), "run: python -m scripts.engines_table"


def test_every_engine_has_a_row_with_what_it_can() -> None:
    rows = {line.split("`")[1]: line for line in table().splitlines() if line.startswith("| `")}
    assert set(rows) == set(BACKEND_MODULES)
    for kind, row in rows.items():
        assert row.count("yes") == len(require_backend(kind).capabilities & set(Capability)), kind


def test_a_page_without_a_place_for_it_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for the table"):
        whole("# Title\n")
