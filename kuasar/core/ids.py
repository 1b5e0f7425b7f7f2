"""Identifiers from outside, validated on entry so that they are safe as path parts, cgroup and socket names."""

from __future__ import annotations

import re

from kuasar.core.errors import InvalidArgument

MAX_ID_BYTES = 76
"""Longest accepted id. containerd allows 76 characters; with this the socket of a sandbox fits into ``sun_path``."""

_ID = re.compile(r"[A-Za-z0-9]+(?:[-_.][A-Za-z0-9]+)*")


def require_id(value: object, field: str) -> str:
    """``value`` if it is an identifier in containerd's grammar, else :class:`InvalidArgument` naming ``field``."""
    if not isinstance(value, str):
        raise InvalidArgument(f"{field}: a string is needed, got {type(value).__name__}", field=field)
    if not value:
        raise InvalidArgument(f"{field}: must not be empty", field=field)
    if len(value) > MAX_ID_BYTES:
        raise InvalidArgument(f"{field}: {len(value)} characters, at most {MAX_ID_BYTES} are allowed", field=field)
    if not _ID.fullmatch(value):
        raise InvalidArgument(
            f"{field}: {value!r} is not an identifier (letters and digits, joined by single '-', '_' or '.')",
            field=field,
        )
    return value
