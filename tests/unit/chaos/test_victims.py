"""In which order things die, and who may die with whom."""

from __future__ import annotations

from tests.chaos.victims import UNDER_LOAD, in_order, together


def test_everybody_dies_as_often_as_is_wanted_and_some_together() -> None:
    counts = {victim: victim.full for victim in UNDER_LOAD}
    deaths = together(in_order(UNDER_LOAD, counts, 7), 7, all_relayed=False)
    flat = [name for names in deaths for name in names]
    assert {victim.name: flat.count(victim.name) for victim in UNDER_LOAD} == {v.name: v.full for v in UNDER_LOAD}
    pairs = {frozenset(names) for names in deaths if len(names) > 1}
    assert frozenset(("gateway", "worker")) in pairs
    assert all(len(pair) == 2 for pair in pairs)


def test_gateway_and_keeper_never_die_together() -> None:
    order = ["gateway", "keeper"] * 200
    assert together(order, 1, all_relayed=False) == [(name,) for name in order]


def test_a_worker_that_relays_streams_never_dies_with_the_keeper() -> None:
    order = ["worker", "keeper"] * 200
    assert together(order, 1, all_relayed=True) == [(name,) for name in order]
    assert together(order, 1, all_relayed=False) != [(name,) for name in order]


def test_a_seed_repeats_the_choices() -> None:
    counts = {victim: victim.quick for victim in UNDER_LOAD}
    assert in_order(UNDER_LOAD, counts, 3) == in_order(UNDER_LOAD, counts, 3)
    assert in_order(UNDER_LOAD, counts, 3) != in_order(UNDER_LOAD, counts, 4)
