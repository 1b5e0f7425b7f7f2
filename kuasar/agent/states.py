"""The states of a process and of a container, as data. No I/O, so the whole machine is tested.

    created ──start──▶ running ◀──resume── paused
       │                  │  └────pause──────▲ │
       └──────exit────────┴────────exit────────┘──▶ stopped

An exec process has the same states without ``paused``. Nothing leaves ``stopped`` but deletion.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from kuasar.core.errors import WrongState


class Status(enum.Enum):
    """Where a process is in its life; the values are those of ``task.state``."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


TRANSITIONS: Mapping[Status, frozenset[Status]] = {
    Status.CREATED: frozenset({Status.RUNNING, Status.STOPPED}),
    Status.RUNNING: frozenset({Status.PAUSED, Status.STOPPED}),
    Status.PAUSED: frozenset({Status.RUNNING, Status.STOPPED}),
    Status.STOPPED: frozenset(),
}


class StateMachine:
    """The state of one process; ``name`` is how errors call it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.status = Status.CREATED

    def to(self, status: Status) -> None:
        """Go to ``status``. Raises :class:`WrongState` when no transition leads there."""
        if status not in TRANSITIONS[self.status]:
            raise WrongState(
                f"{self.name} is {self.status.value} and cannot become {status.value}",
                seen=self.status.value,
                needed=" or ".join(sorted(s.value for s in TRANSITIONS if status in TRANSITIONS[s])),
            )
        self.status = status

    def require(self, *allowed: Status, doing: str) -> None:
        """Raise :class:`WrongState` naming both unless the state is one of ``allowed``."""
        if self.status not in allowed:
            needed = " or ".join(status.value for status in allowed)
            raise WrongState(
                f"{doing}: {self.name} is {self.status.value}, must be {needed}", seen=self.status.value, needed=needed
            )
