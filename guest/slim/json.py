"""``json`` of the guest: the library's own accelerators without what surrounds them, for 170 KiB less memory.

``dumps`` and ``JSONEncoder.encode`` with separators, ``default`` and ``ensure_ascii``; ``loads`` of a text, one value
with white space around it. No indentation, no hooks, no files.
"""

from __future__ import annotations

import sys
from _json import encode_basestring, encode_basestring_ascii, make_encoder, make_scanner
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

_SPACE = " \t\n\r"


class JSONDecodeError(ValueError):
    """The text is no JSON at ``pos``. The accelerator makes it, and looks for it in ``json.decoder``."""

    def __init__(self, msg: str, doc: str, pos: int) -> None:
        super().__init__(f"{msg}: char {pos}")
        self.msg, self.doc, self.pos = msg, doc, pos


sys.modules.setdefault("json.decoder", SimpleNamespace(JSONDecodeError=JSONDecodeError))  # type: ignore[arg-type]


class JSONEncoder:
    """Makes text of values; ``default`` is asked for one that JSON does not have."""

    def __init__(
        self,
        *,
        ensure_ascii: bool = True,
        separators: tuple[str, str] = (", ", ": "),
        default: Callable[[Any], Any] | None = None,
    ) -> None:
        item, key = separators
        quote = encode_basestring_ascii if ensure_ascii else encode_basestring
        self._settings = (default or _refuse, quote, None, key, item, False, False, True)

    def encode(self, o: Any) -> str:
        """The text. Raises :class:`TypeError` for what cannot be written, :class:`ValueError` for a cycle."""
        seen: dict[int, Any] = {}  # of this value: what a failed one leaves in it would be taken for a cycle
        return "".join(make_encoder(seen, *self._settings)(o, 0))


def dumps(obj: Any, **options: Any) -> str:
    """The text of one value, with the options of :class:`JSONEncoder`."""
    return JSONEncoder(**options).encode(obj)


def loads(s: str) -> Any:
    """The value that the text is. Raises :class:`JSONDecodeError`."""
    start = len(s) - len(s.lstrip(_SPACE))
    try:
        value, end = _scan(s, start)
    except StopIteration as exc:
        raise JSONDecodeError("Expecting value", s, exc.value) from None
    if s[end:].strip(_SPACE):
        raise JSONDecodeError("Extra data", s, end)
    return value


class _Context:
    """What the accelerator reads its choices from."""

    strict, object_hook, object_pairs_hook = True, None, None
    parse_float, parse_int, parse_constant = float, int, float


def _refuse(value: Any) -> Any:
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


_scan: Callable[[str, int], tuple[Any, int]] = make_scanner(_Context)  # type: ignore[arg-type]
