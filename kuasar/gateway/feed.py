"""What happens on this node, for those who watch: each has a queue of its own that cannot grow without bound.

Used from the gateway's loop only. Nobody who watches can hold anybody up: the queue of one who does not read loses its
oldest events, and counts them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

MOST_WAITING = 1024


@dataclass(frozen=True)
class Happening:
    """One event."""

    at: int
    """Nanoseconds UTC."""
    topic: str
    sandbox: str
    namespace: str
    data: dict[str, str]
    lost: int = 0
    """Events that this watcher has lost just before."""


class Watcher:
    """The queue of one who watches."""

    def __init__(self, sandbox: str, most: int) -> None:
        self._sandbox = sandbox
        self._most = most
        self._waiting: deque[Happening] = deque()
        self._lost = 0
        self._filled = asyncio.Event()

    def put(self, event: Happening) -> None:
        """Show it, if it is about what this one watches."""
        if self._sandbox and event.sandbox != self._sandbox:
            return
        if len(self._waiting) == self._most:
            self._lost += 1 + self._waiting.popleft().lost
        self._waiting.append(event)
        self._filled.set()

    async def next(self) -> Happening:
        """The oldest one that has not been seen; waits for it."""
        while not self._waiting:
            self._filled.clear()
            await self._filled.wait()
        event, lost = self._waiting.popleft(), self._lost
        self._lost = 0
        return replace(event, lost=lost) if lost else event


class Feed:
    """One per gateway."""

    def __init__(self, most_waiting: int = MOST_WAITING) -> None:
        self._most = most_waiting
        self._watchers: set[Watcher] = set()

    def tell(self, topic: str, sandbox: str, namespace: str, /, **data: Any) -> None:
        """Something happened; costs next to nothing while nobody watches."""
        if not self._watchers:
            return
        values = {name: str(value) for name, value in data.items()}
        event = Happening(time.time_ns(), topic, sandbox, namespace, values)
        for watcher in self._watchers:
            watcher.put(event)

    @contextmanager
    def watching(self, sandbox: str = "") -> Iterator[Watcher]:
        """A watcher of everything, or of one sandbox, while entered."""
        watcher = Watcher(sandbox, self._most)
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
