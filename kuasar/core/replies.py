"""Answers that are kept until they are acknowledged, so that a repeated request does nothing twice.

Used by the worker (requests of the bus) and by the agent (requests of the worker), see docs/bus.md, "Requests". Knows
nothing of loops: whoever joins a request under way hands in a callback.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import msgpack

from kuasar.core.errors import InvalidArgument

MAX_ANSWERS = 1024
MAX_AGE_SECONDS = 600.0

Answer = dict[str, Any]
Receiver = Callable[[Answer], None]


class _Entry:
    __slots__ = ("answer", "fingerprint", "receivers", "since")

    def __init__(self, fingerprint: int) -> None:
        self.fingerprint = fingerprint
        self.answer: Answer | None = None
        self.receivers: list[Receiver] = []
        self.since = time.monotonic()


class ReplyCache:
    """Keyed requests and their answers."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def begin(self, key: str, op: str, body: dict[str, Any], receive: Receiver) -> bool:
        """True: new, carry it out and :meth:`store`. False: ``receive`` gets the kept or coming answer."""
        if not key:
            return True
        fingerprint = hash((op, bytes(msgpack.packb(body))))
        entry = self._entries.get(key)
        if entry is None:
            self._entries[key] = _Entry(fingerprint)
            return True
        if entry.fingerprint != fingerprint:
            raise InvalidArgument(f"key {key!r} was used for another request", field="key")
        if entry.answer is None:
            entry.receivers.append(receive)
        else:
            receive(entry.answer)
        return False

    def store(self, key: str, answer: Answer) -> None:
        entry = self._entries.get(key) if key else None
        if entry is None:
            return
        entry.answer, entry.since = answer, time.monotonic()
        receivers, entry.receivers = entry.receivers, []
        for receive in receivers:
            receive(answer)
        self._trim()

    def ack(self, keys: Iterable[str]) -> None:
        for key in keys:
            entry = self._entries.get(key)
            if entry is not None and entry.answer is not None:
                del self._entries[key]

    def _trim(self) -> None:
        oldest = time.monotonic() - MAX_AGE_SECONDS
        answered = [key for key, entry in self._entries.items() if entry.answer is not None]
        for key in answered:
            if len(answered) <= MAX_ANSWERS and self._entries[key].since >= oldest:
                break
            del self._entries[key]
            answered = answered[1:]
