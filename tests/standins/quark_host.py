"""A host on which Quark is installed: its fixed files, and a program that is the stand-in."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scripts.layout import CHECKOUT
from tests.standins.quark import CONFIG_FILE, KEYS, LOG_FILE

_VALUES: dict[str, Any] = {
    "DebugLevel": "Error",
    "KernelMemSize": 24,
    "LogType": "Sync",
    "LogLevel": "Simple",
    "CudaMemType": "Default",
    "RDMAPort": 1,
    "ReserveCpuCount": 1,
    "CCMode": "None",
}

_MARK = "MadeByTheStandIn"


@contextmanager
def quark_host() -> Iterator[None]:
    """While entered, Quark's configuration and log directory are there, as its installation leaves them. What another
    session has made is used; a real Quark is not disturbed."""
    config, logs = Path(CONFIG_FILE), Path(LOG_FILE).parent
    if config.exists() and _MARK in json.loads(config.read_text(encoding="utf-8")):
        yield
        return
    if config.parent.exists() or logs.exists():
        pytest.skip(f"{config.parent} or {logs} exists: a real Quark is not disturbed")
    try:
        config.parent.mkdir()
        logs.mkdir()
        settings = {**dict.fromkeys(KEYS, False), **_VALUES, _MARK: True}
        config.write_text(json.dumps(settings), encoding="utf-8")
        yield
    finally:
        for path in (config, Path(LOG_FILE)):
            path.unlink(missing_ok=True)
        for directory in (config.parent, logs):
            if directory.exists():
                directory.rmdir()


class QuarkProgram:
    """A file that runs the stand-in; ``faults`` says what goes wrong, and how."""

    def __init__(self, directory: Path, faults: Mapping[str, str] | None = None, version: str = "0.6.0") -> None:
        self.path = directory / "quark"
        self._journal = directory / "quark.journal"
        self._journal.touch()
        settings = {
            "PYTHONPATH": str(CHECKOUT),
            "STANDIN_JOURNAL": str(self._journal),
            "STANDIN_FAULTS": json.dumps(dict(faults or {})),
            "STANDIN_VERSION": version,
        }
        words = " ".join(f"{name}={shlex.quote(value)}" for name, value in settings.items())
        self.path.write_text(
            f'#!/bin/sh\nexec env {words} {sys.executable} -m tests.standins.quark "$@"\n', encoding="utf-8"
        )
        os.chmod(self.path, 0o755)

    @property
    def journal(self) -> list[dict[str, Any]]:
        """All Task calls so far."""
        return [json.loads(line) for line in self._journal.read_text(encoding="utf-8").splitlines()]
