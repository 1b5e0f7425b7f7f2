"""The virtual machine whose first process the agent is, as far as the agent needs it."""

from __future__ import annotations

from typing import Protocol

from kuasar.core.aio import Loop


class Machine(Protocol):
    """Given by the program that is the machine's first process (``guest/pid1/boot.py``)."""

    def load_module(self, name: str) -> None:
        """Load a kernel module with what it needs; harmless when it is there. Raises ``FileNotFoundError`` when the
        image has none of that name, and any other ``OSError`` when the kernel refuses it."""

    def attach(self, loop: Loop) -> None:
        """Called once, before the agent serves: whatever the machine has to do meanwhile is done in ``loop``."""
