"""Adds a file to the ``imports`` of containerd's configuration, and takes it out, without touching anything else in it.

A TOML library would lose comments and layout. So the text is edited: a small scanner finds the array, and what comes of
it is read by :mod:`tomllib` and compared with what was there. An edit that did anything else is refused.
"""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

from kuasar.core.errors import InvalidArgument

_NOTE = "  # added by kuasarctl install"
_BARE = re.compile(r"[A-Za-z0-9_-]+|\"[^\"\n]*\"|'[^'\n]*'")


def imports_of(text: str) -> list[str]:
    """The files that a configuration names. Raises InvalidArgument if it is no TOML, or they are no strings."""
    found = _parse(text).get("imports", [])
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise InvalidArgument("imports: not a list of strings", field="imports")
    return found


def add_import(text: str, path: str) -> str:
    """``text`` with ``path`` among its imports; the same text if it is there. Raises InvalidArgument."""
    before = imports_of(text)
    if path in before:
        return text
    word = json.dumps(path)
    span = _find_array(text)
    if span is None:
        at = _first_statement(text)
        edited = f"{text[:at]}imports = [{word}]{_NOTE}\n{text[at:]}"
    else:
        edited = f"{text[: span[0]]}{word}{', ' if before else ''}{text[span[0] :]}"
    return _require_only(text, edited, [*before, path])


def remove_import(text: str, path: str) -> str:
    """``text`` without ``path`` among its imports; the same text if it is not there. Raises InvalidArgument."""
    before = imports_of(text)
    if path not in before:
        return text
    whole_line = f"imports = [{json.dumps(path)}]{_NOTE}\n"
    left = [each for each in before if each != path]
    if whole_line in text:
        return _require_only(text, text.replace(whole_line, "", 1), left)
    span = _find_array(text)
    assert span is not None, "the parser has found imports"
    inside = text[span[0] : span[1]]
    for word in (json.dumps(path), f"'{path}'"):
        for form in (f"{word}, ", f"{word},", f", {word}", word):
            if form in inside:
                edited = text[: span[0]] + inside.replace(form, "", 1) + text[span[1] :]
                return _require_only(text, edited, left)
    raise InvalidArgument(f"imports: {path} is written in a way that we do not know; take it out by hand")


def replace_imports(text: str, paths: list[str]) -> str:
    """``text`` with ``paths`` for imports, for a copy that lies elsewhere. Raises InvalidArgument."""
    words = ", ".join(map(json.dumps, paths))
    span = _find_array(text)
    if span is None:
        at = _first_statement(text)
        return _require_only(text, f"{text[:at]}imports = [{words}]\n{text[at:]}", paths)
    return _require_only(text, text[: span[0]] + words + text[span[1] :], paths)


def _parse(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise InvalidArgument(f"not valid TOML: {exc}") from exc


def _require_only(before: str, after: str, wanted: list[str]) -> str:
    old, new = _parse(before), _parse(after)
    found = new.pop("imports", [])
    old.pop("imports", None)
    if old != new or sorted(found) != sorted(wanted):
        raise InvalidArgument("imports: the list cannot be changed without touching the rest; change it by hand")
    return after


# -- the scanner -------------------------------------------------------------------------------------------------------


def _find_array(text: str) -> tuple[int, int] | None:
    """Where the value of the top-level ``imports`` begins and ends, without its brackets; None if there is none."""
    at = _first_statement(text)
    while at < len(text) and text[at] != "[":
        match = _BARE.match(text, at)
        if match is None:
            return None
        equals = text.index("=", match.end())
        is_imports = text[at:equals].strip().strip("\"'") == "imports"
        value = _skip_blank(text, equals + 1)
        end = _skip_value(text, value)
        if is_imports:
            return value + 1, end - 1
        at = _skip_space(text, end)
    return None


def _first_statement(text: str) -> int:
    return _skip_space(text, 0)


def _skip_blank(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t":
        at += 1
    return at


def _skip_space(text: str, at: int) -> int:
    """Past blanks, line ends and comments."""
    while at < len(text):
        if text[at] == "#":
            at = _line_end(text, at)
        elif text[at] in " \t\r\n":
            at += 1
        else:
            break
    return at


def _line_end(text: str, at: int) -> int:
    found = text.find("\n", at)
    return len(text) if found < 0 else found


def _skip_value(text: str, at: int) -> int:
    """Past one value of valid TOML."""
    if text[at] in "\"'":
        return _skip_string(text, at)
    if text[at] in "[{":
        close = {"[": "]", "{": "}"}[text[at]]
        at = _skip_space(text, at + 1)
        while text[at] != close:
            at = at + 1 if text[at] in ",=." else _skip_value(text, at)
            at = _skip_space(text, at)
        return at + 1
    while at < len(text) and text[at] not in ",=]}#\n\r \t":
        at += 1
    return at


def _skip_string(text: str, at: int) -> int:
    quote = text[at]
    if text.startswith(quote * 3, at):
        end = at + 3
        while not text.startswith(quote * 3, end):
            end += 2 if quote == '"' and text[end] == "\\" else 1
        end += 3
        while text.startswith(quote, end):  # up to two quotes may stand before the closing ones
            end += 1
        return end
    end = at + 1
    while text[end] != quote:
        end += 2 if quote == '"' and text[end] == "\\" else 1
    return end + 1
