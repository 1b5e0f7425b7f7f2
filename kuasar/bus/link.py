"""What the gateway knows of one sandbox's worker, and what it still owes it or expects from it. No I/O.

States of a link: expected (nobody has greeted yet), alive (a worker has greeted), dead (its process has ended, a
successor is expected), suspended (dead, and nobody is expected for now). Owned by the router (``bus/router.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from kuasar.bus.messages import Hello


class Traced(Protocol):
    """A request that is traced."""

    @property
    def context(self) -> str:
        """A ``traceparent`` for who carries it out."""

    def extend(self, spans: dict[str, Any], /) -> None:
        """What that one has recorded, unchecked."""


@dataclass(eq=False, slots=True)
class Pending:
    """A request whose caller waits."""

    n: int
    key: str
    op: str
    body: dict[str, Any]
    deadline: float | None
    future: asyncio.Future[dict[str, Any]]
    connection: int = 0
    """Number of the connection it was last sent over; 0: it has not been sent."""
    answered: bool = False
    """The worker has answered, be it with an error."""
    trace: Traced | None = None


class EventLedger:
    """Which events of one generation have been seen, and up to which all have been dealt with."""

    __slots__ = ("_last_seen", "_open")

    def __init__(self) -> None:
        self._last_seen = 0
        self._open: set[int] = set()

    def see(self, seq: int) -> bool:
        """Whether ``seq`` is new; then :meth:`done` is expected for it. Gaps are the worker's overflow, not ours."""
        if seq <= self._last_seen:
            return False
        self._last_seen = seq
        self._open.add(seq)
        return True

    def done(self, seq: int) -> None:
        """It has been dealt with for good."""
        self._open.discard(seq)

    @property
    def acknowledged(self) -> int:
        """Everything up to here has been dealt with."""
        return min(self._open) - 1 if self._open else self._last_seen


@dataclass(eq=False, slots=True)
class Link:
    """One per sandbox. Read by anyone in the gateway, changed only by the router."""

    sandbox: str
    identity: bytes = b""
    """Name on the bus of the worker that greeted last."""
    hello: Hello | None = None
    """The last greeting: namespace, engine, instance, generation, pid, state and containers as of then."""
    alive: bool = False
    suspended: str = ""
    """Why nobody is expected for now; empty: a worker is there or will be."""
    pidfd: int = -1
    started: int = 0
    """Start time of the worker's process, in clock ticks since boot; 0: unknown."""
    connection: int = 0
    """Counts greetings: whatever was sent before the last one may be lost."""
    heard: float = 0.0
    """When the worker last said anything, in seconds of CLOCK_MONOTONIC."""
    beat: float = 0.0
    """When it was last sent a heartbeat."""
    silent: bool = False
    pending: dict[int, Pending] = field(default_factory=dict)
    acks: list[str] = field(default_factory=list)
    """Keys whose answers have arrived and that the worker has not been told yet."""
    events: EventLedger = field(default_factory=EventLedger)
    event_ack_due: bool = False
    waiters: list[asyncio.Future[None]] = field(default_factory=list)

    @property
    def generation(self) -> int:
        """Of the last worker that greeted; 0 if none has."""
        return self.hello.generation if self.hello is not None else 0

    @property
    def state(self) -> str:
        """Where the link stands: ``alive``, ``suspended``, ``dead`` or ``expected``."""
        if self.alive:
            return "alive"
        if self.suspended:
            return "suspended"
        return "dead" if self.hello is not None else "expected"

    def unsent(self) -> Iterator[Pending]:
        """What has not been sent over the present connection, oldest first."""
        for pending in list(self.pending.values()):
            if pending.connection != self.connection and not pending.future.done():
                yield pending

    def wake_waiters(self) -> None:
        """Somebody has greeted."""
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def fail_all(self, make: type[Exception], why: str, *, waits: bool = True) -> None:
        """End every pending request with ``make``; without ``waits`` only those that have a deadline."""
        for pending in list(self.pending.values()):
            if not pending.future.done() and (waits or pending.deadline is not None):
                pending.future.set_exception(make(f"{pending.op}: sandbox {self.sandbox}: {why}"))
        if waits:
            for waiter in self.waiters:
                if not waiter.done():
                    waiter.set_exception(make(f"sandbox {self.sandbox}: {why}"))
            self.waiters.clear()
