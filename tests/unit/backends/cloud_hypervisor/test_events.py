"""What the event monitor says, however much of it has been written."""

from __future__ import annotations

import pytest

from kuasar.backends.cloud_hypervisor.events import Event, parse, why_lost

BOOTED = """{
  "timestamp": {
    "secs": 0,
    "nanos": 4
  },
  "source": "vm",
  "event": "booted",
  "properties": null
}"""
RESET = BOOTED.replace("booted", "rebooting")


def test_events_come_one_after_the_other() -> None:
    assert parse(f"{BOOTED}\n\n{RESET}\n\n") == [Event("vm", "booted"), Event("vm", "rebooting")]


@pytest.mark.parametrize("cut", range(1, len(RESET)))
def test_what_is_half_written_comes_later(cut: int) -> None:
    assert parse(f"{BOOTED}\n\n{RESET[:cut]}") == [Event("vm", "booted")]


@pytest.mark.parametrize("text", ["", "rubbish", "[1]", "{"])
def test_what_is_none_is_none(text: str) -> None:
    assert parse(text) == []


@pytest.mark.parametrize(
    "source, name, why",
    [
        ("vm", "rebooting", "its guest has reset the machine"),
        ("guest", "panic", "the kernel of its guest has panicked"),
        ("vm", "shutdown", ""),
        ("virtio-device", "reset", ""),
    ],
)
def test_which_events_mean_that_a_machine_is_lost(source: str, name: str, why: str) -> None:
    assert why_lost([Event("vm", "booted"), Event(source, name)]) == why
