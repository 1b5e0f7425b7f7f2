"""What counts as an end that was reported once."""

from __future__ import annotations

from collections import Counter

from tests.chaos.exits import Exits
from tests.e2e.events import Event


def report(container: str, id_: str = "", code: int = 0, at: float = 0.0) -> Event:
    body = {"container_id": container, "id": id_ or container}
    return Event("/tasks/exit", body | ({"exit_status": code} if code else {}), at)


def test_every_end_once_is_right() -> None:
    events = [report("c", code=3), report("d", "e1"), report("d", "e2", 7), Event("/tasks/delete", {}, 0.0)]
    assert Exits().wrong(events, {"c": 3}, {"d": Counter([0, 7])}) == []


def test_ends_that_are_not_told_or_told_wrong() -> None:
    events = [report("c", code=3), report("d", "e1", 7)]
    assert Exits().wrong(events, {"c": 4}, {}) == ["container c ended with 4; containerd was told [3]"]
    assert Exits().wrong(events, {"x": 4}, {}) == ["container x ended with 4; containerd was told []"]
    (words,) = Exits().wrong(events, {}, {"d": Counter([7, 9])})
    assert words == "commands in d: not told of {9: 1}, told of {} too many (code: times)"
    (words,) = Exits().wrong(events, {}, {"d": Counter()})
    assert words == "commands in d: not told of {}, told of {7: 1} too many (code: times)"


def test_a_repetition_needs_the_death_of_a_gateway() -> None:
    events = [report("c", at=10.0), report("c", at=12.5)]
    exits = Exits()
    assert exits.wrong(events, {"c": 0}, {}) == ["Process(container='c', id='c'): reported twice, 2.50 s apart"]
    exits.gateway_deaths = [3.0, 20.0]
    assert len(exits.wrong(events, {"c": 0}, {})) == 1
    exits.gateway_deaths = [11.0]
    assert exits.wrong(events, {"c": 0}, {}) == []
    assert exits.repeated == 1
    assert exits.wrong([report("c", at=10.0), report("c", code=1, at=12.0)], {}, {}) == [
        "Process(container='c', id='c'): told to have ended with [0, 1]"
    ]
