"""The operation ``network``: cards get names, addresses, routes and neighbours of the pod's interfaces on the host.

A card is told by its MAC address and may come later (hot-plug). No address is probed for duplicates: it is the pod's
own, and the second holder in the same segment is the host's end of the wire, which is deaf (``workers/network.py``).
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from contextlib import suppress
from typing import Any

from kuasar.agent import rtnetlink
from kuasar.agent.network_plan import METRICS, ROUTE_TYPES, Address, Interface, Neighbour, Plan, Route
from kuasar.agent.requests import Body
from kuasar.agent.rtnetlink import Rtnetlink
from kuasar.core.aio import Loop
from kuasar.core.errors import BackendFailed, DeadlineExceeded
from kuasar.core.netlink import decode, encode

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_AF_SPEC = 1, 3, 4, 5, 26
_IFLA_INET6_ADDR_GEN_MODE, _GEN_MODE_NONE = 8, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_CACHEINFO, _IFA_FLAGS = 1, 2, 4, 6, 8
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_METRICS, _RTA_TABLE, _RTA_VIA = (
    (1, 4, 5, 6, 7, 8, 15, 18)
)  # fmt: skip
_NDA_DST, _NDA_LLADDR = 1, 2
_IFF_UP = 1
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_IFA_F_NODAD = 0x02
_FOREVER = 0xFFFFFFFF
_TABLE_MAIN = 254
_RTNH_F_ONLINK = 4
_RTPROT_KERNEL = 2
_NUD_PERMANENT = 0x80
_ADD_OR_REPLACE = rtnetlink.CREATE | rtnetlink.REPLACE


class _Link:
    """An interface as the kernel lists it."""

    def __init__(self, fields: tuple[int, ...], attributes: dict[int, bytes]) -> None:
        _, self.type, self.index, self.flags, _ = fields
        self.name = attributes.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
        self.mac = attributes.get(_IFLA_ADDRESS, b"")
        self.mtu = int.from_bytes(attributes.get(_IFLA_MTU, b""), sys.byteorder)
        self.is_upper = _IFLA_LINK in attributes
        """It is made of another one (a vlan), whose MAC address it has."""


async def configure(loop: Loop, body: Body, deadline: float | None) -> dict[str, Any]:
    """Make the network what ``body`` says and give what is there then. Repeating it is harmless; what is there
    besides is left alone.

    Raises :class:`InvalidArgument` naming the field before anything is changed, :class:`DeadlineExceeded` naming the
    card that did not come, :class:`BackendFailed` with the kernel's reason.
    """
    plan = Plan.parse(body)
    await _wait_for_cards(loop, plan, deadline)
    with Rtnetlink() as netlink:
        _bring_up(netlink, plan)
        return describe(netlink)


async def _wait_for_cards(loop: Loop, plan: Plan, deadline: float | None) -> None:
    wanted = {interface.mac: interface.name for interface in plan.interfaces}
    with rtnetlink.open_link_events() as events, Rtnetlink() as netlink:
        while missing := wanted.keys() - _readdressed(netlink, plan).keys():
            mac = min(missing)
            try:
                await loop.wait_for(loop.wait_readable(events.fileno()), deadline, "waiting for a network card")
            except DeadlineExceeded as exc:
                message = f"interfaces: no network card {_mac_text(mac)} has come for {wanted[mac]}"
                raise DeadlineExceeded(message) from exc
            # Overrun (ENOBUFS) or not: the list is read again.
            with suppress(OSError):
                while events.recv(1 << 16):
                    pass


def _links(netlink: Rtnetlink) -> list[_Link]:
    return [_Link(*each) for each in netlink.dump(rtnetlink.GETLINK, rtnetlink.LINK)]


def _cards(netlink: Rtnetlink) -> dict[bytes, _Link]:
    links = [link for link in _links(netlink) if link.type == _ARPHRD_ETHER and not link.is_upper]
    # Of several with one address (a bridge has its first port's) the oldest is the card.
    return {link.mac: link for link in sorted(links, key=lambda link: -link.index)}


def _readdressed(netlink: Rtnetlink, plan: Plan) -> dict[bytes, _Link]:
    """The cards; those of a machine that was cloned with them have taken their own addresses."""
    for interface in plan.interfaces:
        cards = _cards(netlink)
        card = cards.get(interface.was)
        if card is not None and interface.mac not in cards:
            _change_link(netlink, card.index, card.name, {_IFLA_ADDRESS: interface.mac})
    return _cards(netlink)


def _bring_up(netlink: Rtnetlink, plan: Plan) -> None:
    names = {}
    for link in _links(netlink):
        if link.type == _ARPHRD_LOOPBACK:
            _change_link(netlink, link.index, link.name, up=True)
            names[link.name] = link.index
    for interface in plan.interfaces:
        card = _cards(netlink).get(interface.mac)
        if card is None:
            raise BackendFailed(f"the network card {_mac_text(interface.mac)} of {interface.name} has gone")
        names[interface.name] = card.index
        if card.name != interface.name:
            _rename(netlink, card, interface.name)
        _set_up(netlink, card.index, interface)
    for neighbour in plan.neighbours:
        _add_neighbour(netlink, neighbour, names[neighbour.interface])
    # A gateway must be reachable by then: routes without one come first.
    for route in sorted(plan.routes, key=lambda route: bool(route.gateway)):
        _add_route(netlink, route, names.get(route.interface, 0))


def _rename(netlink: Rtnetlink, card: _Link, name: str) -> None:
    """Give ``card`` its name. Another card that has it makes way (its own turn may come)."""
    for other in _links(netlink):
        if other.name == name:
            _change_link(netlink, other.index, other.name, up=False)
            _change_link(netlink, other.index, other.name, {_IFLA_IFNAME: rtnetlink.text(f"kuasar{other.index}")})
    _change_link(netlink, card.index, name, up=False)
    _change_link(netlink, card.index, name, {_IFLA_IFNAME: rtnetlink.text(name)})


def _set_up(netlink: Rtnetlink, index: int, interface: Interface) -> None:
    name = interface.name
    _change_link(netlink, index, name, {_IFLA_MTU: rtnetlink.u32(interface.mtu)})
    # The link-local address is among those given, or there shall be none: the kernel's own would be probed first.
    inet6 = encode({_IFLA_INET6_ADDR_GEN_MODE: bytes([_GEN_MODE_NONE])})
    family = encode({socket.AF_INET6 | rtnetlink.NESTED: inet6})
    if os.path.exists("/proc/sys/net/ipv6"):
        _change_link(netlink, index, name, {_IFLA_AF_SPEC | rtnetlink.NESTED: family})
    _change_link(netlink, index, name, up=True)
    for address in interface.addresses:
        _add_address(netlink, address, index, name)


def _change_link(
    netlink: Rtnetlink, index: int, name: str, attributes: rtnetlink.Attributes | None = None, up: bool | None = None
) -> None:
    fixed = rtnetlink.LINK.pack(0, 0, index, _IFF_UP if up else 0, 0 if up is None else _IFF_UP)
    try:
        netlink.change(rtnetlink.NEWLINK, 0, fixed, attributes or {})
    except OSError as exc:
        raise BackendFailed(f"cannot set up interface {name}: {exc.strerror}", errno=exc.errno) from exc


def _add_address(netlink: Rtnetlink, address: Address, index: int, name: str) -> None:
    flags = address.flags | (_IFA_F_NODAD if address.family == socket.AF_INET6 else 0)
    attributes = {
        _IFA_LOCAL: address.local,
        _IFA_ADDRESS: address.peer or address.local,
        _IFA_FLAGS: rtnetlink.u32(flags),
    }
    if address.broadcast:
        attributes[_IFA_BROADCAST] = address.broadcast
    if address.valid != _FOREVER or address.preferred != _FOREVER:
        attributes[_IFA_CACHEINFO] = b"".join(map(rtnetlink.u32, (address.preferred, address.valid, 0, 0)))
    fixed = rtnetlink.ADDRESS.pack(address.family, address.prefix, flags & 0xFF, address.scope, index)
    try:
        netlink.change(rtnetlink.NEWADDR, _ADD_OR_REPLACE, fixed, attributes)
    except OSError as exc:
        what = f"{socket.inet_ntop(address.family, address.local)}/{address.prefix}"
        raise BackendFailed(f"cannot give {what} to {name}: {exc.strerror}", errno=exc.errno) from exc


def _add_route(netlink: Rtnetlink, route: Route, index: int) -> None:
    attributes = {_RTA_DST: route.dst} if route.prefix else {}
    if index:
        attributes[_RTA_OIF] = rtnetlink.u32(index)
    if route.gateway and route.gateway_family == route.family:
        attributes[_RTA_GATEWAY] = route.gateway
    elif route.gateway:
        attributes[_RTA_VIA] = int(route.gateway_family).to_bytes(2, sys.byteorder) + route.gateway
    if route.metric:
        attributes[_RTA_PRIORITY] = rtnetlink.u32(route.metric)
    if route.source:
        attributes[_RTA_PREFSRC] = route.source
    if route.metrics:
        metrics = encode({number: rtnetlink.u32(value) for number, value in route.metrics})
        attributes[_RTA_METRICS | rtnetlink.NESTED] = metrics
    fixed = rtnetlink.ROUTE.pack(
        route.family,
        route.prefix,
        0,
        0,
        _TABLE_MAIN,
        route.protocol,
        route.scope,
        route.kind,
        _RTNH_F_ONLINK if route.onlink else 0,
    )
    try:
        netlink.change(rtnetlink.NEWROUTE, rtnetlink.CREATE | rtnetlink.APPEND, fixed, attributes)
    except OSError as exc:
        if exc.errno == errno.EEXIST:
            return
        what = f"{socket.inet_ntop(route.family, route.dst)}/{route.prefix}"
        raise BackendFailed(f"cannot add the route to {what}: {exc.strerror}", errno=exc.errno) from exc


def _add_neighbour(netlink: Rtnetlink, neighbour: Neighbour, index: int) -> None:
    fixed = rtnetlink.NEIGHBOUR.pack(neighbour.family, index, _NUD_PERMANENT, 0, 0)
    attributes = {_NDA_DST: neighbour.address, _NDA_LLADDR: neighbour.mac}
    try:
        netlink.change(rtnetlink.NEWNEIGH, _ADD_OR_REPLACE, fixed, attributes)
    except OSError as exc:
        what = socket.inet_ntop(neighbour.family, neighbour.address)
        raise BackendFailed(f"cannot add the neighbour {what}: {exc.strerror}", errno=exc.errno) from exc


# -- what is there -------------------------------------------------------------------------------------------------


def describe(netlink: Rtnetlink) -> dict[str, Any]:
    """Cards, routes of the main table that somebody added, and permanent neighbours, in the form of the request."""
    links = _links(netlink)
    names = {link.index: link.name for link in links}
    addresses: dict[int, list[dict[str, Any]]] = {}
    for (family, prefix, _, scope, index), attributes in netlink.dump(rtnetlink.GETADDR, rtnetlink.ADDRESS):
        local = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS, b"")
        if text := _ip_text(family, local):
            flags = int.from_bytes(attributes.get(_IFA_FLAGS, b""), sys.byteorder)
            addresses.setdefault(index, []).append(
                {"address": text, "prefix": prefix, "family": _family(family), "scope": scope, "flags": flags}
            )
    return {
        "interfaces": [
            {
                "name": link.name,
                "mac": _mac_text(link.mac),
                "mtu": link.mtu,
                "up": bool(link.flags & _IFF_UP),
                "addresses": addresses.get(link.index, []),
            }
            for link in links
            if link.type == _ARPHRD_ETHER
        ],
        "routes": _describe_routes(netlink, names),
        "neighbours": [
            {"address": text, "mac": _mac_text(attributes.get(_NDA_LLADDR, b"")), "interface": names.get(index, "")}
            for (family, index, state, _, _), attributes in netlink.dump(rtnetlink.GETNEIGH, rtnetlink.NEIGHBOUR)
            if state == _NUD_PERMANENT and (text := _ip_text(family, attributes.get(_NDA_DST, b"")))
        ],
    }


def _describe_routes(netlink: Rtnetlink, names: dict[int, str]) -> list[dict[str, Any]]:
    kinds = {number: name for name, number in ROUTE_TYPES.items()}
    metric_names = {number: name for name, number in METRICS.items()}
    found = []
    for fields, attributes in netlink.dump(rtnetlink.GETROUTE, rtnetlink.ROUTE):
        family, prefix, _, _, table, protocol, scope, kind, flags = fields
        table = int.from_bytes(attributes.get(_RTA_TABLE, bytes([table])), sys.byteorder)
        if table != _TABLE_MAIN or protocol == _RTPROT_KERNEL or family not in (socket.AF_INET, socket.AF_INET6):
            continue
        via = attributes.get(_RTA_VIA, b"")
        gateway = _ip_text(family, attributes.get(_RTA_GATEWAY, b"")) or (
            _ip_text(int.from_bytes(via[:2], sys.byteorder), via[2:])
        )
        anywhere = bytes(4 if family == socket.AF_INET else 16)
        metrics = decode(attributes.get(_RTA_METRICS, b""))
        found.append(
            {
                "dst": f"{_ip_text(family, attributes.get(_RTA_DST, anywhere))}/{prefix}",
                "family": _family(family),
                "type": kinds.get(kind, str(kind)),
                "scope": scope,
                "protocol": protocol,
                "onlink": bool(flags & _RTNH_F_ONLINK),
                "metric": int.from_bytes(attributes.get(_RTA_PRIORITY, b""), sys.byteorder),
                "interface": names.get(int.from_bytes(attributes.get(_RTA_OIF, b""), sys.byteorder), ""),
                "gateway": gateway,
                "source": _ip_text(family, attributes.get(_RTA_PREFSRC, b"")),
                "metrics": {
                    metric_names[number]: int.from_bytes(value, sys.byteorder)
                    for number, value in metrics.items()
                    if number in metric_names
                },
            }
        )
    return found


def _ip_text(family: int, address: bytes) -> str:
    """Empty for what is no IP address."""
    if family not in (socket.AF_INET, socket.AF_INET6) or len(address) != (4 if family == socket.AF_INET else 16):
        return ""
    return socket.inet_ntop(family, address)


def _family(family: int) -> int:
    return 4 if family == socket.AF_INET else 6


def _mac_text(mac: bytes) -> str:
    return mac.hex(":")
