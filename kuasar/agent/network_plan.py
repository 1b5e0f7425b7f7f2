"""The body of the operation ``network`` taken apart: whatever is in it, a plan or an error naming the field."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass

from kuasar.agent.requests import Body

_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
_NAME = re.compile(r"[^\s/:\0]+")
_NAME_BYTES = 15
_MTU = range(68, 65536)
_FOREVER = 0xFFFFFFFF
_ADDRESS_FLAGS = 0x200  # IFA_F_NOPREFIXROUTE
ROUTE_TYPES = {"unicast": 1, "blackhole": 6, "unreachable": 7, "prohibit": 8}
METRICS = {"mtu": 2, "window": 3, "advmss": 8, "hoplimit": 10, "initcwnd": 11, "initrwnd": 14}
"""Names of a route's metrics and their numbers (RTAX_*)."""
_STATIC = 4  # RTPROT_STATIC


@dataclass(frozen=True)
class Address:
    """An address of an interface; times in seconds."""

    family: socket.AddressFamily
    local: bytes
    prefix: int
    peer: bytes
    broadcast: bytes
    scope: int
    flags: int
    valid: int
    preferred: int


@dataclass(frozen=True)
class Interface:
    """A card, found by its MAC address."""

    name: str
    mac: bytes
    mtu: int
    addresses: tuple[Address, ...]
    was: bytes
    """The address that the card has before it gets ``mac``; empty: it has that already."""


@dataclass(frozen=True)
class Route:
    """A route of the main table. Empty bytes or names: none."""

    family: socket.AddressFamily
    dst: bytes
    prefix: int
    kind: int
    scope: int
    protocol: int
    onlink: bool
    metric: int
    interface: str
    gateway: bytes
    gateway_family: socket.AddressFamily
    source: bytes
    metrics: tuple[tuple[int, int], ...]
    """Numbers (RTAX_*) and values."""


@dataclass(frozen=True)
class Neighbour:
    """A permanent neighbour."""

    family: socket.AddressFamily
    address: bytes
    mac: bytes
    interface: str


@dataclass(frozen=True)
class Plan:
    """What the network inside is to be."""

    interfaces: tuple[Interface, ...]
    routes: tuple[Route, ...]
    neighbours: tuple[Neighbour, ...]

    @classmethod
    def parse(cls, body: Body) -> Plan:
        """Raises :class:`InvalidArgument` naming the field."""
        interfaces = tuple(map(_interface, body.maps("interfaces")))
        for what, values in (("name", [i.name for i in interfaces]), ("mac", [i.mac for i in interfaces])):
            for index, value in enumerate(values):
                if value in values[:index]:
                    raise body.error(f"interfaces[{index}].{what}", "is another interface's, too")
        names = {interface.name for interface in interfaces} | {"lo", ""}
        routes = tuple(_route(item, names) for item in body.maps("routes"))
        neighbours = tuple(_neighbour(item, names) for item in body.maps("neighbours"))
        return cls(interfaces, routes, neighbours)


def parse_ip(body: Body, field: str, text: str) -> tuple[socket.AddressFamily, bytes]:
    """Family and bytes of an address in ``field``."""
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        return family, socket.inet_pton(family, text)
    except (OSError, ValueError):
        raise body.error(field, f"{text!r:.80} is no IP address") from None


def _interface(body: Body) -> Interface:
    name = body.text("name")
    fits = len(name.encode(errors="surrogatepass")) <= _NAME_BYTES
    if not fits or not _NAME.fullmatch(name) or name in ("lo", ".", ".."):
        raise body.error("name", f"{name!r:.80} is no name for an interface")
    mtu = _number(body, "mtu", _MTU)
    was = _mac(body, "was") if body.has("was") else b""
    return Interface(name, _mac(body), mtu, tuple(map(_address, body.maps("addresses"))), was)


def _address(body: Body) -> Address:
    family, local = _required_ip(body, "address")
    peer = _ip_of(body, "peer", family)
    broadcast = _ip_of(body, "broadcast", family)
    flags = body.number("flags")
    if flags & ~_ADDRESS_FLAGS:
        raise body.error("flags", f"{flags:#x}: only IFA_F_NOPREFIXROUTE ({_ADDRESS_FLAGS:#x}) can be asked for")
    forever = range(_FOREVER + 1)
    valid, preferred = (
        _number(body, field, forever) if body.has(field) else _FOREVER for field in ("valid", "preferred")
    )
    prefix = _number(body, "prefix", range(len(local) * 8 + 1))
    scope = _number(body, "scope", range(256))
    return Address(family, local, prefix, peer, broadcast, scope, flags, valid, preferred)


def _route(body: Body, names: set[str]) -> Route:
    text, slash, length = body.text("dst").partition("/")
    family, dst = parse_ip(body, "dst", text)
    if slash and not (length.isascii() and length.isdigit() and int(length) <= len(dst) * 8):
        raise body.error("dst", f"{length!r:.20} is no prefix length")
    kind = body.text("type") or "unicast"
    if kind not in ROUTE_TYPES:
        raise body.error("type", f"{kind!r:.80} is none of {', '.join(ROUTE_TYPES)}")
    interface = _interface_name(body, names)
    gateway_text = body.text("gateway")
    gateway_family, gateway = parse_ip(body, "gateway", gateway_text) if gateway_text else (family, b"")
    if not interface and not gateway and kind == "unicast":
        raise body.error("interface", "a route needs an interface or a gateway")
    metrics = Body(body.mapping("metrics"), body.path("metrics."))
    unknown = sorted(str(name) for name in body.mapping("metrics") if name not in METRICS)
    if unknown:
        raise body.error("metrics", f"{unknown[0]!r:.80} is none of {', '.join(METRICS)}")
    return Route(
        family=family,
        dst=dst,
        prefix=int(length) if slash else len(dst) * 8,
        kind=ROUTE_TYPES[kind],
        scope=_number(body, "scope", range(256)),
        protocol=_number(body, "protocol", range(256)) or _STATIC,
        onlink=body.flag("onlink"),
        metric=_number(body, "metric", range(_FOREVER + 1)),
        interface=interface,
        gateway=gateway,
        gateway_family=gateway_family,
        source=_ip_of(body, "source", family),
        metrics=tuple(
            (number, _number(metrics, name, range(_FOREVER + 1)))
            for name, number in METRICS.items()
            if metrics.has(name)
        ),
    )


def _neighbour(body: Body, names: set[str]) -> Neighbour:
    family, address = _required_ip(body, "address")
    interface = _interface_name(body, names)
    if not interface:
        raise body.error("interface", "must not be empty")
    return Neighbour(family, address, _mac(body), interface)


def _interface_name(body: Body, names: set[str]) -> str:
    name = body.text("interface")
    if name not in names:
        raise body.error("interface", f"{name!r:.80} is none of the interfaces")
    return name


def _mac(body: Body, field: str = "mac") -> bytes:
    text = body.text(field).lower()
    if not _MAC.fullmatch(text):
        raise body.error(field, f"{text!r:.80} is no MAC address")
    return bytes.fromhex(text.replace(":", ""))


def _required_ip(body: Body, field: str) -> tuple[socket.AddressFamily, bytes]:
    return parse_ip(body, field, body.text(field))


def _ip_of(body: Body, field: str, family: socket.AddressFamily) -> bytes:
    """An address of the given family; no bytes where it is absent."""
    text = body.text(field)
    if not text:
        return b""
    found, address = parse_ip(body, field, text)
    if found != family:
        raise body.error(field, f"{text!r:.80} is of the other family")
    return address


def _number(body: Body, field: str, allowed: range) -> int:
    value = body.number(field)
    if value not in allowed:
        raise body.error(field, f"{value} is not within {allowed.start} and {allowed.stop - 1}")
    return value
