"""Which sandboxes want a worker: those whose directory holds a record. Read-only; the worker writes the records."""

from __future__ import annotations

import os
from collections.abc import Iterator

from kuasar.core.config import Config
from kuasar.core.errors import InvalidArgument
from kuasar.core.ids import require_id

RECORD = "sandbox.msgpack"


def record_path(config: Config, sandbox: str) -> str:
    """The record of ``sandbox``."""
    return f"{config.sandboxes_dir}/{sandbox}/{RECORD}"


def find_recorded(config: Config) -> Iterator[str]:
    """The ids of all sandboxes with a record, sorted; names that are no ids are skipped, they cannot be ours."""
    try:
        names = sorted(os.listdir(config.sandboxes_dir))
    except FileNotFoundError:
        return
    for name in names:
        try:
            require_id(name, "sandbox")
        except InvalidArgument:
            continue
        if os.path.isfile(record_path(config, name)):
            yield name
