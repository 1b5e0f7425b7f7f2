"""``selectors`` of the guest: ``socket`` imports it for a method that the agent does not use."""

from __future__ import annotations

EVENT_WRITE = 2
