"""What the VMM says happens to its machine (``--event-monitor``): a file of JSON objects, one after the other.

Any worker can read all of it. What counts most: Cloud Hypervisor starts a machine anew whose guest has reset it, as a
kernel does that has panicked; what comes up then is no pod any more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from kuasar.core.aio import Loop

_POLL_SECONDS = 1.0
_LOST = {
    ("vm", "rebooting"): "its guest has reset the machine",
    ("guest", "panic"): "the kernel of its guest has panicked",
}
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Event:
    """One event."""

    source: str
    name: str


def parse(text: str) -> list[Event]:
    """The events in ``text``, as far as they are whole; what is none is left out."""
    decoder = json.JSONDecoder()
    found, at = [], 0
    while (at := text.find("{", at)) >= 0:
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError:
            break  # its end has not been written yet
        if isinstance(value, dict):
            found.append(Event(str(value.get("source")), str(value.get("event"))))
    return found


def why_lost(events: Sequence[Event]) -> str:
    """Why the machine is not what it was started as any more; empty while it is."""
    return next((why for event in events if (why := _LOST.get((event.source, event.name)))), "")


class EventFile:
    """The events of one machine."""

    def __init__(self, loop: Loop, path: str) -> None:
        self._loop = loop
        self.path = path

    def read(self) -> list[Event]:
        """All so far; none where there is no file."""
        try:
            with open(self.path, "rb") as file:
                return parse(file.read(_MOST_BYTES).decode(errors="replace"))
        except OSError:
            return []

    async def until_lost(self) -> str:
        """Waits for an event that says that the machine is lost; gives why."""
        seen = -1
        while True:
            try:
                size = os.stat(self.path).st_size
            except OSError:
                size = 0
            if size != seen:
                seen = size
                why = why_lost(self.read())
                if why:
                    return why
            await self._loop.sleep(_POLL_SECONDS)
