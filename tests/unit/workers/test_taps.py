"""Names of taps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kuasar.core.taps import tap_name

NAMES = st.text(min_size=1, max_size=64)


@given(NAMES, st.text(min_size=1, max_size=15))
def test_names_fit_the_kernel(sandbox_id: str, interface: str) -> None:
    name = tap_name(sandbox_id, interface)
    assert len(name) == 14 and name.isascii() and name.isalnum() and name.startswith("kuasar")


def test_names_are_the_same_for_every_worker_and_differ_by_what_they_are_for() -> None:
    assert tap_name("pod-1", "eth0") == "kuasar34982fe5"
    assert len({tap_name(pod, interface) for pod in ("a", "b") for interface in ("eth0", "eth1")}) == 4
