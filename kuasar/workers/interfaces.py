"""What the CNI plugins have set up in a pod's network namespace, read so that it can be set up again in a guest.

Interfaces with their addresses, routes, permanent neighbours. Whatever a guest could not be given is an error that
names it. What the kernel makes by itself, here as there, is left out: routes of prefixes, the local table, addresses
and routes learnt from router advertisements (the guest hears these, too).
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kuasar.core import log
from kuasar.core.errors import Unimplemented
from kuasar.workers.rtnetlink import Rtnetlink

KINDS = frozenset({"veth", "macvlan", "vlan"})
"""Interfaces whose frames can be redirected both ways and leave with the guest's MAC address."""

_FALLBACK_TUNNELS = frozenset(
    {"ipip", "sit", "gre", "gretap", "erspan", "ip6tnl", "ip6gre", "ip6gretap", "ip6erspan", "vti", "vti6"}
)
"""The kernel puts one of each into every new namespace once its module is loaded."""

_IFF_UP = 0x1
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_LINK_KINDS = {32: "infiniband", 65534: "tun"}
_IFA_F_TEMPORARY, _IFA_F_PERMANENT, _IFA_F_NOPREFIXROUTE = 0x01, 0x80, 0x200
_FOREVER = 0xFFFFFFFF
_RT_TABLE_MAIN = 254
_RTPROT_KERNEL, _RTPROT_RA = 2, 9
_RTM_F_CLONED = 0x200
_RTNH_F_ONLINK = 4
_ROUTE_TYPES = {1: "unicast", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
_METRICS = {
    "RTAX_MTU": "mtu",
    "RTAX_WINDOW": "window",
    "RTAX_ADVMSS": "advmss",
    "RTAX_HOPLIMIT": "hoplimit",
    "RTAX_INITCWND": "initcwnd",
    "RTAX_INITRWND": "initrwnd",
}
_USUAL_RULES = frozenset({0, 32766, 32767})
_NUD_PERMANENT = 0x80


@dataclass(frozen=True)
class Interface:
    """One interface of the pod, as CNI made it."""

    name: str
    index: int
    mac: str
    mtu: int
    addresses: tuple[dict[str, Any], ...]
    """As in the agent's operation ``network`` (docs/agent-protocol.md)."""


@dataclass(frozen=True)
class Survey:
    """What a namespace has for a guest."""

    interfaces: tuple[Interface, ...]
    routes: tuple[dict[str, Any], ...]
    neighbours: tuple[dict[str, Any], ...]


def survey(netlink: Rtnetlink) -> Survey:
    """Read the namespace of ``netlink``. Raises :class:`Unimplemented` naming what no guest can be given."""
    addresses: dict[int, list[dict[str, Any]]] = {}
    for message in netlink.addresses():
        addresses.setdefault(message["index"], []).extend(_address(message))
    interfaces = []
    names = {}
    for link in netlink.links():
        index, name = int(link["index"]), str(link.get_attr("IFLA_IFNAME"))
        names[index] = name
        if _is_carried(link, name, bool(addresses.get(index))):
            mac = str(link.get_attr("IFLA_ADDRESS"))
            mtu = int(link.get_attr("IFLA_MTU"))
            interfaces.append(Interface(name, index, mac, mtu, tuple(addresses.get(index, ()))))
    _refuse_twins(interfaces)
    if not interfaces:
        return Survey((), (), ())
    _refuse_rules(netlink.rules())
    carried = {interface.index: interface.name for interface in interfaces}
    routes = [route for message in netlink.routes() for route in _route(message, names)]
    neighbours = [each for message in netlink.neighbours() for each in _neighbour(message, carried)]
    return Survey(tuple(interfaces), tuple(routes), tuple(neighbours))


def _is_carried(link: Any, name: str, has_addresses: bool) -> bool:
    if link["ifi_type"] == _ARPHRD_LOOPBACK:
        return False
    kind = _kind(link)
    if kind in _FALLBACK_TUNNELS and not link["flags"] & _IFF_UP and not has_addresses:
        return False
    if link["ifi_type"] != _ARPHRD_ETHER or kind not in KINDS:
        raise Unimplemented(
            f"interface {name} is of kind {kind}, which cannot be joined to a virtual machine; "
            f"can be: {', '.join(sorted(KINDS))}",
            capability=f"interface:{kind}",
            interface=name,
        )
    return True


def _kind(link: Any) -> str:
    """``physical`` where the kernel names none: a device, or a virtual function of one."""
    information = link.get_attr("IFLA_LINKINFO")
    kind = information.get_attr("IFLA_INFO_KIND") if information else None
    return str(kind or _LINK_KINDS.get(link["ifi_type"], "physical"))


def _refuse_twins(interfaces: Iterable[Interface]) -> None:
    """A guest tells its interfaces by their MAC addresses."""
    known: dict[str, str] = {}
    for interface in interfaces:
        if (other := known.setdefault(interface.mac, interface.name)) != interface.name:
            raise Unimplemented(
                f"interfaces {other} and {interface.name} have the same MAC address {interface.mac}",
                capability="interface:same-mac",
                interface=interface.name,
            )


def _refuse_rules(rules: Iterable[Any]) -> None:
    for rule in rules:
        priority = rule.get_attr("FRA_PRIORITY") or 0
        if priority not in _USUAL_RULES:
            raise Unimplemented(
                f"the namespace has a policy routing rule of priority {priority}; rules are not carried into a guest",
                capability="rules",
            )


def _address(message: Any) -> list[dict[str, Any]]:
    """The address, unless it is one that the guest makes itself."""
    family = message["family"]
    flags = message.get_attr("IFA_FLAGS") or message["flags"]
    if family not in (socket.AF_INET, socket.AF_INET6):
        return []
    life = message.get_attr("IFA_CACHEINFO") or {}
    valid, preferred = life.get("ifa_valid", _FOREVER), life.get("ifa_preferred", _FOREVER)
    if family == socket.AF_INET6 and flags & _IFA_F_TEMPORARY:
        return []
    far = message.get_attr("IFA_ADDRESS")
    near = message.get_attr("IFA_LOCAL") or far
    address: dict[str, Any] = {
        "address": near,
        "prefix": message["prefixlen"],
        "family": _family(family),
        "scope": message["scope"],
        "flags": flags & _IFA_F_NOPREFIXROUTE,
    }
    if far != near:
        address["peer"] = far
    if broadcast := message.get_attr("IFA_BROADCAST"):
        address["broadcast"] = broadcast
    if not flags & _IFA_F_PERMANENT:
        address |= {"valid": valid, "preferred": preferred}
    return [address]


def _route(message: Any, names: Mapping[int, str]) -> list[dict[str, Any]]:
    """The route, unless it is one that the guest makes or learns itself."""
    family = message["family"]
    table = message.get_attr("RTA_TABLE") or message["table"]
    if family not in (socket.AF_INET, socket.AF_INET6) or table != _RT_TABLE_MAIN:
        return []
    if message["proto"] in (_RTPROT_KERNEL, _RTPROT_RA) or message["flags"] & _RTM_F_CLONED:
        return []
    anywhere = "0.0.0.0" if family == socket.AF_INET else "::"  # noqa: S104 - a destination
    destination = f"{message.get_attr('RTA_DST') or anywhere}/{message['dst_len']}"
    kind = _ROUTE_TYPES.get(message["type"])
    via = message.get_attr("RTA_VIA")
    for refused, what in (
        (kind is None, f"type {message['type']}"),
        (message.get_attr("RTA_MULTIPATH"), "several next hops"),
        (message.get_attr("RTA_ENCAP_TYPE"), "an encapsulation"),
        (message["src_len"], "a source prefix"),
        (message["tos"], "a type of service"),
    ):
        if refused:
            raise Unimplemented(
                f"the route to {destination} has {what}, which is not carried into a guest", capability="route"
            )
    route: dict[str, Any] = {
        "dst": destination,
        "family": _family(family),
        "type": kind,
        "scope": message["scope"],
        "protocol": message["proto"],
        "onlink": bool(message["flags"] & _RTNH_F_ONLINK),
        "metric": message.get_attr("RTA_PRIORITY") or 0,
        "interface": names.get(message.get_attr("RTA_OIF") or 0, ""),
        "gateway": message.get_attr("RTA_GATEWAY") or (via["addr"] if via else ""),
        "source": message.get_attr("RTA_PREFSRC") or "",
        "metrics": _metrics(message.get_attr("RTA_METRICS")),
    }
    return [route]


def _metrics(attribute: Any) -> dict[str, int]:
    found = {}
    for name, value in attribute["attrs"] if attribute else ():
        if name in _METRICS:
            found[_METRICS[name]] = int(value)
        else:
            log.warning("a metric of a route is not carried into the guest", metric=name)
    return found


def _neighbour(message: Any, names: Mapping[int, str]) -> list[dict[str, Any]]:
    if message["ifindex"] not in names or message["state"] != _NUD_PERMANENT:
        return []
    if message["family"] not in (socket.AF_INET, socket.AF_INET6):
        return []
    return [
        {
            "address": message.get_attr("NDA_DST"),
            "mac": message.get_attr("NDA_LLADDR"),
            "interface": names[message["ifindex"]],
        }
    ]


def _family(family: int) -> int:
    return 4 if family == socket.AF_INET else 6
