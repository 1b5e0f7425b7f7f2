"""What this worker has in the keeper, so that its successor gets it: descriptors by name.

The keeper is a process of its own and may be away. The worker then works on and hands everything over again when a
keeper is back; only if both die at the same time is something lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kuasar.core import log
from kuasar.core.aio import Loop, Timer
from kuasar.core.errors import KuasarError, Unavailable

_RETRY_SECONDS = 0.2
_MAX_RETRY_SECONDS = 5.0


class Keeper(Protocol):
    """A connection to the keeper, made on first use. Its calls are short and synchronous; all but ``fileno`` and
    ``lost`` raise :class:`Unavailable` while there is no keeper."""

    def put(self, name: str, fds: Sequence[int], meta: bytes = b"") -> None:
        """Keep duplicates of ``fds`` under ``name``, in the place of what was there."""

    def get(self, name: str) -> tuple[list[int], bytes] | None:
        """Duplicates for the caller."""

    def drop(self, name: str) -> None:
        """Forget; harmless when unknown."""

    def fileno(self) -> int | None:
        """To be watched: what can be read from it between two calls is the end of the keeper."""

    def lost(self) -> None:
        """That end has been seen."""


class Keeping:
    """What should be in the keeper. The descriptors stay the caller's, who replaces or drops an entry before it closes
    one of them. Without a keeper (None) nothing is kept."""

    def __init__(self, loop: Loop, keeper: Keeper | None) -> None:
        self._loop = loop
        self._keeper = keeper
        self._entries: dict[str, tuple[tuple[int, ...], bytes]] = {}
        self._owed: dict[str, None] = {}
        """Names of which the keeper does not know the latest, oldest first."""
        self._watched: int | None = None
        self._timer: Timer | None = None
        self._delay = _RETRY_SECONDS

    def put(self, name: str, fds: Sequence[int], meta: bytes = b"") -> None:
        """Have ``fds`` kept under ``name``, now or as soon as there is a keeper."""
        self._entries[name] = (tuple(fds), meta)
        self._owe(name)

    def drop(self, name: str) -> None:
        """Have ``name`` forgotten; harmless when unknown."""
        self._entries.pop(name, None)
        self._owe(name)

    def get(self, name: str) -> tuple[list[int], bytes] | None:
        """What a predecessor has put; None if nothing is there, or no keeper."""
        if self._keeper is None:
            return None
        self._unwatch()
        try:
            return self._keeper.get(name)
        except Unavailable as exc:
            log.warning("no keeper, what it held cannot be taken over", name=name, error=exc)
            return None
        finally:
            self._watch()

    def close(self) -> None:
        """Watch and retry no more; what the keeper holds stays there."""
        self._unwatch()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._entries.clear()
        self._owed.clear()

    def _owe(self, name: str) -> None:
        if self._keeper is not None:
            self._owed[name] = None
            if self._timer is None:
                self._pay()

    def _pay(self) -> None:
        """Tell the keeper everything it does not know yet."""
        assert self._keeper is not None
        self._timer = None
        self._unwatch()
        try:
            while self._owed:
                name = next(iter(self._owed))
                self._tell(name)
                del self._owed[name]
        except Unavailable as exc:
            if self._delay == _RETRY_SECONDS:
                log.warning("no keeper, trying again", owed=len(self._owed), error=exc)
            # It may be another keeper that comes back: it is told everything.
            self._owed |= dict.fromkeys(self._entries)
            self._timer = self._loop.call_later(self._delay, self._pay)
            self._delay = min(2 * self._delay, _MAX_RETRY_SECONDS)
            return
        self._delay = _RETRY_SECONDS
        self._watch()

    def _tell(self, name: str) -> None:
        assert self._keeper is not None
        try:
            if name in self._entries:
                self._keeper.put(name, *self._entries[name])
            else:
                self._keeper.drop(name)
        except Unavailable:
            raise
        except KuasarError as exc:  # it will say the same next time
            log.error("the keeper refuses; this does not survive the worker", name=name, error=exc)

    def _watch(self) -> None:
        assert self._keeper is not None
        self._watched = self._keeper.fileno()
        if self._watched is not None:
            self._loop.add_reader(self._watched, self._lost)

    def _unwatch(self) -> None:
        """A call may close the connection, and nothing that is watched may be closed."""
        if self._watched is not None:
            self._loop.remove_reader(self._watched)
            self._watched = None

    def _lost(self) -> None:
        assert self._keeper is not None
        log.warning("the keeper has ended, everything is handed over again")
        self._unwatch()
        self._keeper.lost()
        self._owed |= dict.fromkeys(self._entries)
        if self._timer is None:
            self._pay()
