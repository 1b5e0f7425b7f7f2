"""What the dealer does without a gateway: it keeps events within bounds, and starts and ends cleanly."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from kuasar.bus.dealer import MAX_EVENTS, BusDealer
from kuasar.bus.messages import Hello, MalformedMessage, Request
from kuasar.core.aio import Loop
from tests.deadline import eventually


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def dealer(loop: Loop) -> BusDealer:
    async def handle(request: Request) -> dict[str, Any]:
        return {}

    def hello() -> Hello:
        return Hello("s1", "ns", "runc", "kuasar-runc", "i1", 1, os.getpid(), "new", [])

    return BusDealer(loop, "ipc:///nonexistent/bus.sock", "s1", hello, handle)


def test_when_too_many_events_wait_the_oldest_are_given_up_and_counted(loop: Loop) -> None:
    bus = dealer(loop)
    for n in range(MAX_EVENTS + 10):
        bus.publish("t", {"id": n}, pytest.fail)
    assert bus.dropped_events == 10
    assert len(bus._events) == MAX_EVENTS
    assert bus._events[0][0] == 11


def test_an_event_that_cannot_be_carried_is_the_publishers_error_and_takes_no_number(loop: Loop) -> None:
    bus = dealer(loop)
    with pytest.raises(MalformedMessage):
        bus.publish("t", {"id": object()}, pytest.fail)
    bus.publish("t", {"id": 1}, pytest.fail)
    assert [entry[0] for entry in bus._events] == [1]


def test_it_starts_and_ends_without_a_gateway_and_without_leftovers(loop: Loop) -> None:
    before = own()
    bus = dealer(loop)

    async def scenario() -> None:
        await bus.close()  # harmless before the start
        bus.start()
        bus.publish("t", {}, pytest.fail)
        await loop.sleep(0.02)
        await bus.close()
        await bus.close()

    loop.run(scenario())
    # the kernel takes a joined thread out of its list a moment later
    eventually(own, "what it was before", until=lambda now: now == before)


def own() -> tuple[set[str], int]:
    """The names of this process's open descriptors, and how many threads it has."""
    return set(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
