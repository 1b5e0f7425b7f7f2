"""One line per event, logfmt, on standard error: ``time level message key=value …``.

Module-level because a process has one standard error; :func:`configure` sets the level and the fields that every line
carries (sandbox id, process name). Used by every process of the tree; costs no import beyond ``time`` and ``os``.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_level = 20
_prefix = ""
_fd = 2


def configure(level: str = "info", fd: int = 2, **fields: Any) -> None:
    """Set level, descriptor and the fields of every later line."""
    global _level, _prefix, _fd
    _level = _LEVELS[level]
    _prefix = _render(fields)
    _fd = fd


def enabled(level: str) -> bool:
    """Whether lines of ``level`` are written, for callers whose fields are costly."""
    return _LEVELS[level] >= _level


def debug(message: str, **fields: Any) -> None:
    """For whoever looks for a bug."""
    _write("debug", message, fields)


def info(message: str, **fields: Any) -> None:
    """What an operator wants to see of a normal day."""
    _write("info", message, fields)


def warning(message: str, **fields: Any) -> None:
    """Something was not as it should be, and was dealt with."""
    _write("warning", message, fields)


def error(message: str, **fields: Any) -> None:
    """Something failed for a user."""
    _write("error", message, fields)


def _write(level: str, message: str, fields: dict[str, Any]) -> None:
    if _LEVELS[level] < _level:
        return
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
    line = f"{stamp} {level} {_quote(message)}{_prefix}{_render(fields)}\n"
    with suppress(OSError):  # when the reader of our log is gone, nothing may fail because of it
        os.write(_fd, line.encode(errors="replace"))  # one write: lines of several writers do not mix


def _render(fields: dict[str, Any]) -> str:
    return "".join(f" {key}={_quote(str(value))}" for key, value in fields.items())


def _quote(text: str) -> str:
    if text and all(c.isprintable() and c not in ' "=' for c in text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'
