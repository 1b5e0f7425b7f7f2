"""What a gateway keeps of a worker: which events are dealt with, what has not been sent, where the link stands."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kuasar.bus.link import EventLedger, Link, Pending
from kuasar.bus.messages import Hello
from kuasar.core.errors import NotFound, Unavailable


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=60))
def test_the_ledger_never_acknowledges_what_is_not_dealt_with_nor_takes_anything_twice(
    steps: list[tuple[bool, int]],
) -> None:
    """Against the plain definition: everything seen up to the number is done."""
    ledger = EventLedger()
    seen: list[int] = []
    done: set[int] = set()
    for see, seq in steps:
        if see:
            new = ledger.see(seq)
            assert new == (not seen or seq > seen[-1])
            if new:
                seen.append(seq)
        elif seq in seen:
            ledger.done(seq)
            done.add(seq)
        upto = ledger.acknowledged
        assert all(number in done for number in seen if number <= upto)
        if set(seen) <= done:
            assert upto == (seen[-1] if seen else 0)


def test_the_ledger_acknowledges_over_gaps() -> None:
    ledger = EventLedger()
    assert ledger.see(5)  # 1 to 4 were given up by the worker
    assert ledger.acknowledged == 4
    ledger.done(5)
    assert ledger.acknowledged == 5


def pending(n: int, deadline: float | None = None) -> Pending:
    future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    return Pending(n, "", f"op{n}", {}, deadline, future)


def test_the_states_of_a_link() -> None:
    link = Link("s1")
    assert (link.state, link.generation) == ("expected", 0)
    link.hello, link.alive = Hello("s1", "", "", "", "i", 3, 1, "new", []), True
    assert (link.state, link.generation) == ("alive", 3)
    link.alive = False
    assert link.state == "dead"
    link.suspended = "by an operator"
    assert link.state == "suspended"


def test_what_has_not_been_sent_over_this_connection() -> None:
    async def test() -> None:
        link = Link("s1", connection=2)
        for n in (1, 2, 3, 4):
            link.pending[n] = pending(n)
        link.pending[1].connection = 1
        link.pending[2].connection = 2
        link.pending[4].future.cancel()
        assert [entry.n for entry in link.unsent()] == [1, 3]

    asyncio.run(test())


def test_failing_spares_waits_only_if_told_to() -> None:
    async def test() -> None:
        link = Link("s1")
        read, wait = link.pending[1], link.pending[2] = pending(1, deadline=5.0), pending(2)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        link.waiters.append(waiter)
        link.fail_all(Unavailable, "its worker was stopped", waits=False)
        assert str(read.future.exception()) == "op1: sandbox s1: its worker was stopped"
        assert not wait.future.done()
        assert not waiter.done()
        link.fail_all(NotFound, "it has been removed")
        assert isinstance(wait.future.exception(), NotFound)
        assert isinstance(waiter.exception(), NotFound)
        assert not link.waiters

    asyncio.run(test())
