"""The restart policy: at once at first, slower and slower, never never."""

from __future__ import annotations

import itertools

from kuasar.supervisor.policy import (
    FREE_RESTARTS,
    HEALTHY_SECONDS,
    LONGEST_PAUSE,
    SECONDS_A_DEATH,
    RestartPolicy,
)


def test_the_first_deaths_are_free() -> None:
    policy = RestartPolicy()
    assert [policy.died(0.0) for _ in range(FREE_RESTARTS)] == [0.0] * FREE_RESTARTS


def test_then_the_pause_doubles_up_to_the_cap() -> None:
    policy = RestartPolicy()
    pauses = [policy.died(0.0) for _ in range(1000)][FREE_RESTARTS:]
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
    assert all(b == min(2 * a, LONGEST_PAUSE) for a, b in itertools.pairwise(pauses))
    assert pauses[-1] == LONGEST_PAUSE


def test_a_minute_of_crashes_is_a_dozen_starts() -> None:
    policy, clock, starts = RestartPolicy(), 0.0, 0
    while clock < 60:
        clock += 0.01 + policy.died(0.01)
        starts += 1
    assert starts <= 13


def test_a_healthy_life_clears_the_score() -> None:
    policy = RestartPolicy()
    for _ in range(10):
        policy.died(0.0)
    assert policy.died(HEALTHY_SECONDS) == 0.0
    assert policy.died(0.0) == 0.0
    assert policy.short_lives == 1


def test_who_is_killed_now_and_then_is_started_again_at_once() -> None:
    policy = RestartPolicy()
    lives = [0.0, 4.4, 0.9, 8.2, 0.1, 6.0, 2.1, 9.0, 0.3, 5.0] * 20
    assert {policy.died(lived) for lived in lives} == {0.0}


def test_who_dies_just_before_it_can_pay_is_in_a_crash_loop() -> None:
    policy = RestartPolicy()
    assert [policy.died(SECONDS_A_DEATH - 0.01) for _ in range(100)][-1] == LONGEST_PAUSE


def test_an_operator_clears_the_score() -> None:
    policy = RestartPolicy()
    for _ in range(10):
        policy.died(0.0)
    policy.forgive()
    assert policy.died(0.0) == 0.0
