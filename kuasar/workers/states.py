"""The states of a sandbox, as data. No I/O: the table is tested exhaustively.

::

    NEW --> CREATED --> STARTING --> READY --> STOPPING --> STOPPED --> GONE
              |            |           |                       ^
              |            +-----------+--- the machine dies --+
              +--- shutdown without start ---------------------+

UNKNOWN is the state of a sandbox whose record names a running machine that has not been looked at yet (a new worker).
Stop and shutdown are legal in every state.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from kuasar.core.errors import WrongState


class State(enum.Enum):
    """What a sandbox is doing."""

    NEW = "new"
    """A worker without a sandbox: nothing is recorded yet."""
    CREATED = "created"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"
    """The machine is gone; what it held may still be being freed."""
    GONE = "gone"
    """Everything is freed and forgotten; the worker is about to exit."""
    UNKNOWN = "unknown"


ALLOWED: dict[State, frozenset[State]] = {
    State.NEW: frozenset({State.CREATED, State.GONE}),
    State.CREATED: frozenset({State.STARTING, State.STOPPED}),
    State.STARTING: frozenset({State.READY, State.STOPPING, State.STOPPED, State.CREATED}),
    State.READY: frozenset({State.STOPPING, State.STOPPED}),
    State.STOPPING: frozenset({State.STOPPED}),
    State.STOPPED: frozenset({State.GONE}),
    State.GONE: frozenset(),
    State.UNKNOWN: frozenset({State.CREATED, State.STARTING, State.READY, State.STOPPING, State.STOPPED}),
}


class StateMachine:
    """Holds the current state; :meth:`to` is the only way to change it."""

    def __init__(self, subject: str, initial: State, notify: Callable[[State, State], None]) -> None:
        self._subject = subject
        self._notify = notify
        self.state = initial

    def to(self, state: State) -> None:
        """Change to ``state`` and notify; the same state again is harmless. Raises WrongState if not allowed. A change
        that cannot be notified (written down) has not happened."""
        if state is self.state:
            return
        if state not in ALLOWED[self.state]:
            raise WrongState(
                f"{self._subject} is {self.state.value}, it cannot become {state.value}",
                seen=self.state.value,
                needed="|".join(sorted(s.value for s, nexts in ALLOWED.items() if state in nexts)),
            )
        before, self.state = self.state, state
        try:
            self._notify(before, state)
        except BaseException:
            self.state = before
            raise

    def require(self, *states: State, doing: str) -> None:
        """Raise WrongState unless the current state is one of ``states``."""
        if self.state not in states:
            needed = " or ".join(s.value for s in states)
            raise WrongState(
                f"{doing}: {self._subject} is {self.state.value}, it must be {needed}",
                seen=self.state.value,
                needed=needed,
            )
