"""The state machine of a sandbox, exhaustively: every pair of states, and the error that names both."""

from __future__ import annotations

import itertools

import pytest

from kuasar.core.errors import WrongState
from kuasar.workers.states import ALLOWED, State, StateMachine


@pytest.mark.parametrize(("before", "after"), list(itertools.product(State, State)))
def test_every_transition(before: State, after: State) -> None:
    seen: list[tuple[State, State]] = []
    machine = StateMachine("sandbox x", before, lambda a, b: seen.append((a, b)))
    if before is after:
        machine.to(after)
        assert seen == []
    elif after in ALLOWED[before]:
        machine.to(after)
        assert machine.state is after
        assert seen == [(before, after)]
    else:
        with pytest.raises(WrongState) as caught:
            machine.to(after)
        assert machine.state is before
        assert caught.value.seen == before.value
        assert before.value in str(caught.value)
        assert after.value in str(caught.value)


def test_every_state_can_reach_its_end() -> None:
    for start in State:
        reached, todo = {start}, [start]
        while todo:
            for following in ALLOWED[todo.pop()]:
                if following not in reached:
                    reached.add(following)
                    todo.append(following)
        assert State.GONE in reached, start


def test_require_names_what_is_needed() -> None:
    machine = StateMachine("sandbox x", State.CREATED, lambda *_: None)
    machine.require(State.CREATED, State.READY, doing="start")
    with pytest.raises(WrongState, match="start: sandbox x is created, it must be ready or stopped") as caught:
        machine.require(State.READY, State.STOPPED, doing="start")
    assert caught.value.needed == "ready or stopped"


def test_a_change_that_cannot_be_written_down_has_not_happened() -> None:
    def refuse(before: State, after: State) -> None:
        raise OSError("full")

    machine = StateMachine("sandbox x", State.CREATED, refuse)
    with pytest.raises(OSError, match="full"):
        machine.to(State.STARTING)
    assert machine.state is State.CREATED
