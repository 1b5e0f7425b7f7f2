"""``signal`` of the guest: numbers instead of enumerations, for 200 KiB less memory."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
from _signal import *  # noqa: F403


class Signals(int):
    """A signal that knows its name. Raises :class:`ValueError` for a number that has none."""

    @property
    def name(self) -> str:
        """Such as SIGKILL."""
        return _NAMES[self]

    def __new__(cls, number: int) -> Signals:
        if number not in _NAMES:
            raise ValueError(f"{number} is not a valid Signals")
        return super().__new__(cls, number)


_NAMES: dict[int, str] = {
    value: name
    for name, value in sorted(vars(_signal).items(), reverse=True)
    if name.startswith("SIG") and not name.startswith("SIG_") and isinstance(value, int)
}
"""Of two names of one number the one that the library gives: the first in the alphabet's order."""
