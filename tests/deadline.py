"""Waiting with a deadline: the only place of the tests that passes time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")
INTERVAL = 0.02
SLOWNESS = float(os.environ.get("SLOWNESS", "1"))
"""How many times slower this machine is than what the tests' deadlines are made for (``tests/pure_v2.py``)."""


class Patience:
    """How many times longer than elsewhere everything may take: emulated machines are slow."""

    factor = SLOWNESS


def eventually(
    look: Callable[[], Value], what: str, *, timeout: float = 15.0, until: Callable[[Value], object] = bool
) -> Value:
    """Looks again and again until `until` likes what is seen, and gives it; fails after `timeout` seconds, times the
    patience."""
    timeout *= Patience.factor
    deadline = time.monotonic() + timeout
    while True:
        seen = look()
        if until(seen):
            return seen
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout:g} s; last seen: {seen!r:.2000}")
        time.sleep(INTERVAL)
