"""Total access to decoded JSON: what is absent or null has a default, what is of another type is an error.

Each function names the ``field`` in its :class:`InvalidArgument`; ``get_*`` take it from a map, ``require*`` check it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from kuasar.core.errors import InvalidArgument

T = TypeVar("T")


def require(value: Any, kind: type[T], field: str, words: str) -> T:
    """``value`` if it is exactly a ``kind`` (a bool is no int); ``words`` say what is needed."""
    if type(value) is not kind:
        raise InvalidArgument(f"{field}: {words} is needed, got {type(value).__name__}", field=field)
    return value  # exactly of that type


def get_map(parent: Mapping[str, Any], key: str, field: str) -> dict[str, Any]:
    """The map at ``key``; empty if absent."""
    value = parent.get(key)
    return {} if value is None else require(value, dict, field, "a map")


def get_list(parent: Mapping[str, Any], key: str, field: str) -> list[Any]:
    """The list at ``key``; empty if absent."""
    value = parent.get(key)
    return [] if value is None else require(value, list, field, "a list")


def get_boolean(parent: Mapping[str, Any], key: str, field: str) -> bool:
    """The boolean at ``key``; false if absent."""
    value = parent.get(key)
    return False if value is None else require(value, bool, field, "true or false")


def get_string(parent: Mapping[str, Any], key: str, field: str) -> str:
    """The string at ``key``; empty if absent."""
    value = parent.get(key)
    return "" if value is None else require_string(value, field)


def get_strings(parent: Mapping[str, Any], key: str, field: str) -> list[str]:
    """The list of strings at ``key``; empty if absent."""
    return [require_string(value, f"{field}[{n}]") for n, value in enumerate(get_list(parent, key, field))]


def require_string(value: Any, field: str) -> str:
    """``value`` if it is a string that a C program can take: without NUL, encodable as UTF-8."""
    text = require(value, str, field, "a string")
    if "\0" in text:
        raise InvalidArgument(f"{field}: contains a NUL character", field=field)
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise InvalidArgument(f"{field}: is not valid Unicode", field=field) from exc
    return text


def get_integer(parent: Mapping[str, Any], key: str, field: str, least: int, most: int = 2**63 - 1) -> int | None:
    """The integer at ``key`` between ``least`` and ``most``; None if absent."""
    value = parent.get(key)
    return None if value is None else require_integer(value, field, least, most)


def require_integer(value: Any, field: str, least: int, most: int) -> int:
    """``value`` if it is an integer between ``least`` and ``most``."""
    number = require(value, int, field, "an integer")
    if not least <= number <= most:
        raise InvalidArgument(f"{field}: {number} is not between {least} and {most}", field=field)
    return number
