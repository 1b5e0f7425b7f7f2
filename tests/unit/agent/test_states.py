"""The state machine, exhaustively: every pair of states, every way to ask."""

from __future__ import annotations

import itertools

import pytest

from kuasar.agent.states import TRANSITIONS, StateMachine, Status
from kuasar.core.errors import WrongState

ALLOWED = {
    ("created", "running"),
    ("created", "stopped"),
    ("running", "paused"),
    ("running", "stopped"),
    ("paused", "running"),
    ("paused", "stopped"),
}


def machine_in(status: Status) -> StateMachine:
    machine = StateMachine("c")
    machine.status = status
    return machine


@pytest.mark.parametrize(("before", "after"), list(itertools.product(Status, Status)))
def test_every_pair_of_states(before: Status, after: Status) -> None:
    machine = machine_in(before)
    if (before.value, after.value) in ALLOWED:
        machine.to(after)
        assert machine.status is after
        return
    with pytest.raises(WrongState, match=f"c is {before.value} and cannot become {after.value}") as raised:
        machine.to(after)
    assert machine.status is before
    assert raised.value.seen == before.value


def test_every_state_is_in_the_table_and_can_be_reached() -> None:
    assert set(TRANSITIONS) == set(Status)
    assert set().union(*TRANSITIONS.values()) | {Status.CREATED} == set(Status)


@pytest.mark.parametrize(("status", "allowed"), list(itertools.product(Status, itertools.combinations(Status, 2))))
def test_require_names_what_it_saw_and_what_it_needs(status: Status, allowed: tuple[Status, Status]) -> None:
    machine = machine_in(status)
    if status in allowed:
        machine.require(*allowed, doing="start")
        return
    with pytest.raises(WrongState, match=f"start: c is {status.value}") as raised:
        machine.require(*allowed, doing="start")
    assert raised.value.needed == f"{allowed[0].value} or {allowed[1].value}"
