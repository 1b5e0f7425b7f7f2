"""How much is measured: a full run within eight minutes, a quick one within two, on two cores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

_MINIMUM = 3
"""Rounds that are made even when the time is up: fewer give no median."""


@dataclass(frozen=True)
class Plan:
    """Rounds and the seconds after which no further round is begun. In each round every contestant has one turn."""

    name: str
    warmup: int
    pods: int
    pod_seconds: float
    batches: int
    batch_seconds: float
    lives: int
    life_seconds: float
    execs: int
    outputs: int
    output_seconds: float
    floods: int
    bulk_megabytes: int
    line_megabytes: int
    flood_seconds: float
    pod_counts: tuple[int, ...]
    workers: int
    bus_seconds: float
    modules: int
    module_seconds: float
    boots: int
    boot_seconds: float
    clones_per_boot: int
    clone_batches: int
    boot_batches: int
    machine_counts: tuple[int, ...]


FULL = Plan(
    name="full",
    warmup=2,
    pods=60,
    pod_seconds=40,
    batches=5,
    batch_seconds=25,
    lives=40,
    life_seconds=45,
    execs=3,
    outputs=20,
    output_seconds=25,
    floods=3,
    bulk_megabytes=200,
    line_megabytes=40,
    flood_seconds=30,
    pod_counts=(1, 10, 50),
    workers=50,
    bus_seconds=6,
    modules=15,
    module_seconds=12,
    boots=8,
    boot_seconds=50,
    clones_per_boot=4,
    clone_batches=2,
    boot_batches=1,
    machine_counts=(1, 10),
)

QUICK = Plan(
    name="quick",
    warmup=1,
    pods=10,
    pod_seconds=7,
    batches=1,
    batch_seconds=4,
    lives=8,
    life_seconds=10,
    execs=3,
    outputs=5,
    output_seconds=6,
    floods=1,
    bulk_megabytes=50,
    line_megabytes=10,
    flood_seconds=6,
    pod_counts=(1, 10),
    workers=50,
    bus_seconds=2,
    modules=3,
    module_seconds=4,
    boots=1,
    boot_seconds=10,
    clones_per_boot=4,
    clone_batches=0,
    boot_batches=0,
    machine_counts=(1,),
)


def rounds(count: int, seconds: float, warmup: int = 0) -> Iterator[tuple[int, bool]]:
    """Numbers of rounds, ``warmup`` ones first, each with whether it counts; ends early when ``seconds`` are over."""
    for number in range(warmup):
        yield number, False
    end = time.monotonic() + seconds
    for number in range(count):
        if number >= _MINIMUM and time.monotonic() > end:
            return
        yield number, True
