"""One line per event on standard error: logfmt, ``time level message key=value …``, or an object of JSON.

Module-level because a process has one standard error; :func:`configure` sets level, form and the fields that every line
carries (sandbox id, process name), :func:`set_level` changes the level of a running process. Used by every process of
the tree; costs no import beyond ``time`` and ``os`` (and ``json`` where that is the form).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("logfmt", "json")
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_level = 20
_prefix = ""
_fields: dict[str, Any] = {}
_encode: Callable[[Any], str] | None = None
"""What makes JSON of a line; None: it is logfmt."""
_fd = 2
_about: Callable[[], Mapping[str, str] | None] | None = None
"""Tells what the line that is being written is about."""


def configure(level: str = "info", fd: int = 2, form: str = "logfmt", **fields: Any) -> None:
    """Set level, descriptor, form (one of :data:`FORMATS`) and the fields of every later line."""
    global _prefix, _fields, _encode, _fd
    set_level(level)
    _prefix = _render(fields)
    _fields = fields
    _encode = None
    if form == "json":
        import json

        _encode = json.JSONEncoder(ensure_ascii=False, default=str).encode
    _fd = fd


def set_level(level: str) -> None:
    """Set the level, one of :data:`LEVELS`."""
    global _level
    _level = _LEVELS[level]


def set_about(about: Callable[[], Mapping[str, str] | None]) -> None:
    """Ask ``about`` at every line which request, sandbox and container it is about: these fields are added to it,
    unless it has them."""
    global _about
    _about = about


def level() -> str:
    """The level that holds."""
    return next(name for name, number in _LEVELS.items() if number == _level)


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
    about = _about() if _about is not None else None
    if about:
        fields = fields | {name: text for name, text in about.items() if name not in fields and name not in _fields}
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
    if _encode is None:
        line = f"{stamp} {level} {_quote(message)}{_prefix}{_render(fields)}\n"
    else:
        line = _encode({"time": stamp, "level": level, "message": message, **_fields, **_plain(fields)}) + "\n"
    with suppress(OSError):  # when the reader of our log is gone, nothing may fail because of it
        os.write(_fd, line.encode(errors="replace"))  # one write: lines of several writers do not mix


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """Numbers and flags as they are, everything else as text."""
    return {name: value if isinstance(value, int | float) else str(value) for name, value in fields.items()}


def _render(fields: dict[str, Any]) -> str:
    return "".join(f" {key}={_quote(str(value))}" for key, value in fields.items())


def _quote(text: str) -> str:
    if text and all(c.isprintable() and c not in ' "=' for c in text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'
