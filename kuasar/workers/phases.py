"""Where the time of a start goes: named phases, measured one after the other."""

from __future__ import annotations

import time

from kuasar.core import spans
from kuasar.core.failpoints import failpoint


class Phases:
    """A stopwatch with laps. ``laps`` holds (name, milliseconds) in order."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.laps: list[tuple[str, float]] = []

    def lap(self, name: str) -> None:
        """The time since the last lap was spent on ``name``."""
        now = time.monotonic()
        self.laps.append((name, round((now - self._last) * 1000, 2)))
        trace = spans.current()
        if trace is not None:
            trace.lap(f"phase {name}", now - self._last)
        self._last = now
        failpoint(f"start.{name}")

    def __str__(self) -> str:
        return " ".join(f"{name}={milliseconds}ms" for name, milliseconds in self.laps)
