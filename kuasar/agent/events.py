"""Events that are kept until the worker has acknowledged them, so that none is lost between two workers."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from kuasar.agent.protocol import Event
from kuasar.core import log

MAX_KEPT = 4096


class EventLog:
    """The events of this agent. ``on_publish`` is who sends a new one on, if somebody listens."""

    def __init__(self) -> None:
        self.instance = os.urandom(16).hex()
        self.on_publish: Callable[[Event], None] = lambda _: None
        self._kept: deque[Event] = deque()
        self._seq = 0

    def publish(self, topic: str, **body: Any) -> None:
        """Keep the event, with a unique ``id`` in its body, and send it."""
        self._seq += 1
        event = Event(self._seq, topic, {"id": f"{self.instance}/{self._seq}", **body})
        self._kept.append(event)
        if len(self._kept) > MAX_KEPT:
            dropped = self._kept.popleft()
            log.error("too many events are unacknowledged, the oldest is dropped", topic=dropped.topic, seq=dropped.seq)
        self.on_publish(event)

    def ack(self, seq: int) -> None:
        """Forget everything up to ``seq``."""
        while self._kept and self._kept[0].seq <= seq:
            self._kept.popleft()

    def unacknowledged(self) -> Iterable[Event]:
        """What a new worker has to be told."""
        return tuple(self._kept)
