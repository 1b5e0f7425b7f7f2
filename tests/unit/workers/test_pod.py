"""The PodSpec decoder: total, and every refusal names the field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuasar.core.errors import InvalidArgument
from kuasar.workers.pod import Dns, PodSpec


def test_round_trip() -> None:
    pod = PodSpec(
        name="a", dns=Dns(["1.1.1.1"], ["example"], ["ndots:2"]), sysctls={"a": "b"}, overhead={"cpu_quota": 5}
    )
    assert PodSpec.from_wire(pod.to_wire()) == pod


def test_absent_fields_have_defaults() -> None:
    assert PodSpec.from_wire({}) == PodSpec()


@pytest.mark.parametrize(
    ("wire", "field"),
    [
        ([], "config"),
        ({"nmae": "x"}, "config.nmae"),
        ({"name": 1}, "config.name"),
        ({"attempt": True}, "config.attempt"),
        ({"host_pid": 1}, "config.host_pid"),
        ({"labels": {"a": 1}}, "config.labels"),
        ({"overhead": {"cpu": "1"}}, "config.overhead"),
        ({"dns": []}, "config.dns"),
        ({"dns": {"servers": "1.1.1.1"}}, "config.dns.servers"),
    ],
)
def test_refusals_name_the_field(wire: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        PodSpec.from_wire(wire)
    assert caught.value.field == field


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda c: st.lists(c) | st.dictionaries(st.sampled_from([*PodSpec.__dataclass_fields__, "x"]), c),
    )
)
def test_decoder_is_total(wire: Any) -> None:
    try:
        PodSpec.from_wire(wire)
    except InvalidArgument as exc:
        assert exc.field.startswith("config")
