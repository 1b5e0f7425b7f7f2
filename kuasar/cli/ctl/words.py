"""Numbers as people read them."""

from __future__ import annotations

import signal
import time

_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_SIGNAL_BASE = 128


def age(nanoseconds: int, now: int | None = None) -> str:
    """How long ago that was, in its two largest units: ``3h12m``; ``-`` for never."""
    if not nanoseconds:
        return "-"
    left = max(0, ((time.time_ns() if now is None else now) - nanoseconds) // 1_000_000_000)
    for index, (name, size) in enumerate(_UNITS):
        if left >= size:
            count, rest = divmod(left, size)
            smaller = _UNITS[index + 1] if index + 1 < len(_UNITS) else None
            part = f"{rest // smaller[1]}{smaller[0]}" if smaller and rest // smaller[1] else ""
            return f"{count}{name}{part}"
    return "0s"


def moment(nanoseconds: int) -> str:
    """Date and time of day, UTC; ``-`` for never."""
    if not nanoseconds:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(nanoseconds // 1_000_000_000)) + " UTC"


def pod(name: str, namespace: str) -> str:
    """A pod as Kubernetes' tools name it: ``namespace/name``; empty for a sandbox without one."""
    return f"{namespace}/{name}" if namespace else name


def size(count: int) -> str:
    """Bytes with a binary unit."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def ending(status: int) -> str:
    """An exit status in words: ``exit status 3``, ``killed by SIGKILL (137)``."""
    try:
        name = signal.Signals(status - _SIGNAL_BASE).name if status > _SIGNAL_BASE else ""
    except ValueError:
        name = ""
    return f"killed by {name} ({status})" if name else f"exit status {status}"


def printable(text: str) -> str:
    """``text`` without what would move a terminal's cursor or change its colours: it may come from a guest."""
    return "".join(char if char.isprintable() or char == "\t" else "\N{REPLACEMENT CHARACTER}" for char in text)
