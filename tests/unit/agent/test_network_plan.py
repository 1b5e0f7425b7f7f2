"""The body of ``network``: whatever is in it becomes a plan, or an error naming the field."""

from __future__ import annotations

import copy
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kuasar.agent.network_plan import Plan
from kuasar.agent.requests import Body
from kuasar.core.errors import InvalidArgument

GOOD: dict[str, Any] = {
    "interfaces": [
        {
            "name": "eth0",
            "mac": "02:00:00:00:00:AB",
            "mtu": 1450,
            "addresses": [
                {
                    "address": "10.0.0.2",
                    "prefix": 24,
                    "family": 4,
                    "scope": 0,
                    "flags": 0x200,
                    "broadcast": "10.0.0.255",
                },
                {"address": "fd00::2", "prefix": 64, "valid": 600, "preferred": 300},
            ],
        },
        {"name": "net1", "mac": "02:00:00:00:00:ac", "mtu": 9000},
    ],
    "routes": [
        {"dst": "0.0.0.0/0", "gateway": "10.0.0.1", "interface": "eth0", "onlink": True, "metrics": {"mtu": 1300}},
        {"dst": "10.9.0.0/16", "gateway": "fe80::1", "interface": "net1", "source": "10.0.0.2", "metric": 9},
        {"dst": "fd01::/64", "interface": "eth0", "scope": 253, "protocol": 3},
        {"dst": "10.6.0.0/16", "type": "blackhole"},
    ],
    "neighbours": [{"address": "10.0.0.1", "mac": "02:00:00:00:00:01", "interface": "eth0"}],
}


def test_a_whole_plan() -> None:
    plan = Plan.parse(Body(GOOD))
    eth0, net1 = plan.interfaces
    assert (eth0.name, eth0.mac, eth0.mtu, net1.mtu) == ("eth0", bytes.fromhex("0200000000ab"), 1450, 9000)
    assert (eth0.addresses[0].local, eth0.addresses[0].prefix, eth0.addresses[0].flags) == (b"\x0a\0\0\x02", 24, 0x200)
    assert (eth0.addresses[0].valid, eth0.addresses[1].valid, eth0.addresses[1].preferred) == (0xFFFFFFFF, 600, 300)
    default, via6, link, hole = plan.routes
    assert (default.prefix, default.onlink, default.metrics, default.protocol) == (0, True, ((2, 1300),), 4)
    assert (via6.family, via6.gateway_family, via6.metric) == (socket.AF_INET, socket.AF_INET6, 9)
    assert (link.scope, link.protocol, link.gateway) == (253, 3, b"")
    assert (hole.kind, hole.interface) == (6, "")
    assert plan.neighbours[0].mac == b"\x02\0\0\0\0\x01"


def test_an_empty_plan() -> None:
    assert Plan.parse(Body({})) == Plan((), (), ())


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("interfaces",), {}, "interfaces"),
        (("interfaces", 0), "eth0", "interfaces[0]"),
        (("interfaces", 0, "name"), "", "interfaces[0].name"),
        (("interfaces", 0, "name"), "lo", "interfaces[0].name"),
        (("interfaces", 0, "name"), "a/b", "interfaces[0].name"),
        (("interfaces", 0, "name"), "sixteen-letters-", "interfaces[0].name"),
        (("interfaces", 0, "name"), "eighty-ümläüt", "interfaces[0].name"),
        (("interfaces", 0, "name"), "net1", "interfaces[1].name"),
        (("interfaces", 0, "mac"), "02:00:00:00:00", "interfaces[0].mac"),
        (("interfaces", 0, "mac"), "02:00:00:00:00:ac", "interfaces[1].mac"),
        (("interfaces", 0, "mtu"), 67, "interfaces[0].mtu"),
        (("interfaces", 0, "mtu"), None, "interfaces[0].mtu"),
        (("interfaces", 0, "addresses", 1), 7, "interfaces[0].addresses[1]"),
        (("interfaces", 0, "addresses", 0, "address"), "10.0.0", "interfaces[0].addresses[0].address"),
        (("interfaces", 0, "addresses", 0, "address"), "10.0.0.1\0", "interfaces[0].addresses[0].address"),
        (("interfaces", 0, "addresses", 0, "prefix"), 33, "interfaces[0].addresses[0].prefix"),
        (("interfaces", 0, "addresses", 0, "flags"), 0x80, "interfaces[0].addresses[0].flags"),
        (("interfaces", 0, "addresses", 0, "broadcast"), "fd00::1", "interfaces[0].addresses[0].broadcast"),
        (("interfaces", 0, "addresses", 1, "valid"), -1, "interfaces[0].addresses[1].valid"),
        (("routes", 0, "dst"), "0.0.0.0/33", "routes[0].dst"),
        (("routes", 0, "dst"), "0.0.0.0/", "routes[0].dst"),
        (("routes", 0, "dst"), "default", "routes[0].dst"),
        (("routes", 0, "type"), "throw", "routes[0].type"),
        (("routes", 0, "interface"), "eth9", "routes[0].interface"),
        (("routes", 0, "gateway"), "me", "routes[0].gateway"),
        (("routes", 0, "metric"), 1 << 32, "routes[0].metric"),
        (("routes", 0, "metrics"), {"color": 1}, "routes[0].metrics"),
        (("routes", 0, "metrics"), {"mtu": -1}, "routes[0].metrics.mtu"),
        (("routes", 2, "interface"), "", "routes[2].interface"),
        (("routes", 2, "source"), "10.0.0.1", "routes[2].source"),
        (("neighbours", 0, "interface"), "", "neighbours[0].interface"),
        (("neighbours", 0, "mac"), "", "neighbours[0].mac"),
        (("neighbours", 0, "address"), "x", "neighbours[0].address"),
    ],
)
def test_errors_name_the_field(path: tuple[Any, ...], value: Any, field: str) -> None:
    body = copy.deepcopy(GOOD)
    place = body
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(InvalidArgument) as caught:
        Plan.parse(Body(body))
    assert caught.value.field == field
    assert caught.value.message.startswith(f"{field}: ")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.binary(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)


@given(st.data())
def test_anything_is_a_plan_or_invalid(data: st.DataObject) -> None:
    """One value anywhere in a good body is replaced by any other."""
    body = copy.deepcopy(GOOD)
    place: Any = body
    while True:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(list(keys)))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(VALUES)
    try:
        Plan.parse(Body(body))
    except InvalidArgument as exc:
        assert exc.field
