"""Quark's own configuration file, as a pod of ours needs it.

Quark reads one fixed file. Ours are two keys of it; the rest is the operator's.
"""

from __future__ import annotations

import json
import os
from typing import Any

from kuasar.core.errors import BackendFailed

CONFIG_FILE = "/etc/quark/config.json"
LOG_DIRECTORY = "/var/log/quark"
"""Quark does not start where it cannot write there."""
OURS = {"Sandboxed": True, "ShimMode": False}
"""A sandbox with a Task server of its own, not containerd's shim."""


def for_pod(text: str) -> dict[str, Any]:
    """The configuration in ``text`` with our keys. Raises :class:`BackendFailed` naming the file if it is none."""
    try:
        settings = json.loads(text)
    except ValueError as exc:
        raise BackendFailed(f"{CONFIG_FILE}: no JSON: {exc}") from exc
    if not isinstance(settings, dict):
        raise BackendFailed(f"{CONFIG_FILE}: an object is needed, got {text.strip()!r:.80}")
    return {**settings, **OURS}


def load() -> dict[str, Any]:
    """The configuration of this host with our keys. Raises :class:`BackendFailed` naming what Quark would miss."""
    try:
        with open(CONFIG_FILE, encoding="utf-8") as file:
            settings = for_pod(file.read())
    except OSError as exc:
        raise BackendFailed(f"Quark needs its configuration {CONFIG_FILE}: {exc.strerror}") from exc
    if not os.path.isdir(LOG_DIRECTORY):
        raise BackendFailed(f"Quark needs the directory {LOG_DIRECTORY}, which is not there: make it")
    return settings
