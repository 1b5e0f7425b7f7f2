"""Answers that are kept until they are acknowledged, so that a request which is sent again does nothing twice.

Used by the worker for requests of the bus and by the agent for requests of the worker (docs/bus.md, "Requests"). Owned
by one connection end, lives as long as its process. Knows nothing of loops: who joins a request under way hands in a
callback, which is called from within :meth:`ReplyCache.store`.

A key is unknown, under way, or answered: ``begin`` makes it under way, ``store`` answered, ``ack`` unknown again.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgpack

from kuasar.core import log
from kuasar.core.errors import InvalidArgument

MAX_ANSWERS = 1024
MAX_AGE_SECONDS = 600.0

Answer = dict[str, Any]
"""What is kept: for both users a map with either ``body`` or ``error``."""
Receiver = Callable[[Answer], None]


@dataclass(slots=True)
class _UnderWay:
    fingerprint: int
    receivers: list[Receiver] = field(default_factory=list)
    acknowledged: bool = False
    """Its caller has given up already: the answer need not be kept."""


@dataclass(slots=True)
class _Answered:
    fingerprint: int
    answer: Answer
    since: float


class ReplyCache:
    """Keyed requests and their answers. The empty key is never kept."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._under_way: dict[str, _UnderWay] = {}
        self._answered: OrderedDict[str, _Answered] = OrderedDict()
        self.dropped = 0
        """Answers that were given up unacknowledged, because of their age or number."""

    def begin(self, key: str, op: str, body: dict[str, Any], receive: Receiver) -> bool:
        """Whether the request is new: then carry it out and :meth:`store` its answer, whatever happens.

        Otherwise ``receive`` gets the answer of the first one: at once if it is there, else when it is stored. Raises
        :class:`InvalidArgument` when the key belongs to another request.
        """
        if not key:
            return True
        fingerprint = hash((op, msgpack.packb(body)))
        known = self._under_way.get(key) or self._answered.get(key)
        if known is None:
            self._under_way[key] = _UnderWay(fingerprint)
            return True
        if known.fingerprint != fingerprint:
            raise InvalidArgument(f"key {key!r:.100}: was used for another request than this {op}", field="key")
        if isinstance(known, _Answered):
            receive(known.answer)
        else:
            known.receivers.append(receive)
        return False

    def store(self, key: str, answer: Answer) -> None:
        """Keep the answer of a request that has begun and give it to everyone who joined. Harmless without a key."""
        entry = self._under_way.pop(key, None)
        if entry is None:
            return
        if not entry.acknowledged:
            self._answered[key] = _Answered(entry.fingerprint, answer, self._clock())
            if len(self._answered) > 1:
                self._trim()
        for receive in entry.receivers:
            receive(answer)

    def ack(self, keys: Iterable[str]) -> None:
        """Nobody will ask for these again. Unknown keys are ignored; what is under way is not kept once it ends."""
        for key in keys:
            self._answered.pop(key, None)
            entry = self._under_way.get(key)
            if entry is not None:
                entry.acknowledged = True

    def __len__(self) -> int:
        return len(self._under_way) + len(self._answered)

    def _trim(self) -> None:
        """Give up the oldest answers. Two requests of this age or distance are no repeats of each other any more."""
        oldest = self._clock() - MAX_AGE_SECONDS
        while len(self._answered) > MAX_ANSWERS or next(iter(self._answered.values())).since < oldest:
            self._answered.popitem(last=False)
            self.dropped += 1
            if self.dropped & (self.dropped - 1) == 0:  # 1, 2, 4, 8 …: a peer that never acknowledges fills no log
                log.warning("answers were never acknowledged, the oldest is given up", dropped=self.dropped)
