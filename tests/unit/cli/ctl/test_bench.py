"""What ``kuasarctl bench`` makes of its samples and of containerd's configuration."""

from __future__ import annotations

import pytest

from kuasar.cli.ctl.measuring import Samples, handlers, quantile
from kuasar.core.config import Sandboxer


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(1, 0.5, 1), (1, 1.0, 1), (2, 0.5, 1), (3, 0.5, 2), (20, 0.95, 19), (10, 0.95, 10), (100, 0.5, 50), (7, 1.0, 7)],
)
def test_a_quantile_is_a_sample(count: int, share: float, expected: int) -> None:
    assert quantile([float(number) for number in range(1, count + 1)], share) == expected


def test_phases_follow_the_step_that_they_are_in() -> None:
    samples = Samples()
    for step, milliseconds in (
        ("remove pod", 4.0),
        ("run pod", 3.0),
        ("  agent", 2.0),
        ("  setup", 1.0),
        ("run pod", 1.0),
    ):
        samples.add(step, milliseconds)
    assert list(samples.rows()) == [
        ("run pod", [1.0, 3.0]),
        ("  agent", [2.0]),
        ("  setup", [1.0]),
        ("remove pod", [4.0]),
    ]


def test_engines_are_found_by_the_sandboxers_of_the_runtimes() -> None:
    runtimes = {
        "runc": {"runtimeType": "io.containerd.runc.v2"},
        "kuasar-b": {"sandboxer": "kuasar-qemu"},
        "kuasar-a": {"sandboxer": "kuasar-qemu"},
        "kuasar-c": {"sandboxer": "nobody"},
        "odd": None,
    }
    sandboxers = {"kuasar-qemu": Sandboxer(engine="qemu"), "kuasar-runc": Sandboxer(engine="runc")}
    assert handlers(runtimes, sandboxers) == {"qemu": "kuasar-a"}
