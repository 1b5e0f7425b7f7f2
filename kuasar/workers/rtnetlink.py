"""A rtnetlink socket of the host: pyroute2's messages, encoded and decoded, over a plain socket.

pyroute2's own sockets bring an asyncio loop, which costs a worker 6 MiB and 20 ms; its messages alone cost 2 MiB and
5 ms. The socket belongs to the network namespace of the thread that opened it, and to that thread.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from pyroute2.netlink.rtnl.tcmsg import cls_u32, tcmsg

from kuasar.core.errors import DeadlineExceeded
from kuasar.core.netlink import HEADER, TIMEOUT_SECONDS, NetlinkSocket, RefusedError

TC_H_INGRESS = 0xFFFFFFF1
_INGRESS_HANDLE = 0xFFFF0000
_ETH_P_ALL = 3

_NEWLINK, _DELLINK, _GETLINK, _GETADDR, _GETROUTE, _GETNEIGH, _GETRULE = 16, 17, 18, 22, 26, 30, 34
_NEWQDISC, _DELQDISC, _NEWTFILTER = 36, 37, 44
_EXCLUSIVE, _CREATE = 0x200, 0x400
_IFF_UP = 1
_NO_LINK_LOCAL = {"attrs": [["AF_INET6", {"attrs": [["IFLA_INET6_ADDR_GEN_MODE", 1]]}]]}


class Rtnetlink(NetlinkSocket):
    """One socket; a context manager. Everything raises :class:`RefusedError` with the kernel's errno."""

    # -- what there is ---------------------------------------------------------------------------------------------

    def links(self) -> list[Any]:
        """All interfaces (``ifinfmsg``)."""
        return self._dump(ifinfmsg, _GETLINK)

    def addresses(self) -> list[Any]:
        """All addresses (``ifaddrmsg``)."""
        return self._dump(ifaddrmsg, _GETADDR)

    def routes(self) -> list[Any]:
        """All routes of all tables (``rtmsg``)."""
        return self._dump(rtmsg, _GETROUTE)

    def neighbours(self) -> list[Any]:
        """All neighbours (``ndmsg``)."""
        return self._dump(ndmsg, _GETNEIGH)

    def rules(self) -> list[Any]:
        """All policy routing rules (``fibmsg``)."""
        return self._dump(fibmsg, _GETRULE)

    def index(self, name: str) -> int | None:
        """The index of an interface in the calling thread's namespace, or None."""
        try:
            return socket.if_nametoindex(name)
        except OSError as exc:
            if exc.errno not in (None, errno.ENODEV):  # Python has no errno for "no interface with this name"
                raise
            return None

    # -- changes ---------------------------------------------------------------------------------------------------

    def set_up(self, index: int, mtu: int) -> None:
        """Set MTU, let the kernel give no link-local address (it would speak with the guest), and set it up."""
        attributes = [["IFLA_MTU", mtu]]
        try:
            self._change(ifinfmsg, _NEWLINK, 0, index=index, attrs=[*attributes, ["IFLA_AF_SPEC", _NO_LINK_LOCAL]])
        except RefusedError as exc:
            if exc.errno not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):  # a kernel without IPv6
                raise
            self._change(ifinfmsg, _NEWLINK, 0, index=index, attrs=attributes)
        self._change(ifinfmsg, _NEWLINK, 0, index=index, flags=_IFF_UP, change=_IFF_UP, attrs=[])

    def delete_link(self, index: int) -> None:
        """Remove an interface."""
        self._change(ifinfmsg, _DELLINK, 0, index=index, attrs=[])

    def add_ingress(self, index: int) -> None:
        """Add the queueing discipline that sees what an interface receives. EEXIST: somebody has."""
        self._change(
            tcmsg,
            _NEWQDISC,
            _CREATE | _EXCLUSIVE,
            index=index,
            handle=_INGRESS_HANDLE,
            parent=TC_H_INGRESS,
            attrs=[["TCA_KIND", "ingress"]],
        )

    def delete_ingress(self, index: int) -> None:
        """Remove it with all its filters."""
        self._change(tcmsg, _DELQDISC, 0, index=index, handle=_INGRESS_HANDLE, parent=TC_H_INGRESS, attrs=[])

    def redirect(self, index: int, target: int) -> None:
        """Everything that interface ``index`` receives leaves by interface ``target``; the stack never sees it."""
        # u32, because every kernel with tc has it: matchall is younger and often left out.
        parameters: dict[str, Any] = {
            "protocol": _ETH_P_ALL,
            "prio": 1,
            "target": 0,
            "keys": ["0x0/0x0+0"],
            "action": {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": target},
        }
        cls_u32.fix_request(parameters)
        self._change(
            tcmsg,
            _NEWTFILTER,
            _CREATE | _EXCLUSIVE,
            index=index,
            parent=_INGRESS_HANDLE,
            info=parameters["info"],
            attrs=[["TCA_KIND", "u32"], ["TCA_OPTIONS", cls_u32.get_parameters(parameters)]],
        )

    # -- the wire --------------------------------------------------------------------------------------------------

    def _change(self, message: type[Any], kind: int, flags: int, /, **fields: Any) -> None:
        with _deadline():
            self.ask(kind, flags, _body(message, fields))

    def _dump(self, message: type[Any], kind: int) -> list[Any]:
        with _deadline():
            found = self.listing(kind, _body(message, {"family": socket.AF_UNSPEC}))
        items = [message(HEADER.pack(HEADER.size + len(body), kind, 0, 0, 0) + body) for body in found]
        for item in items:
            item.decode()
        return items


def _body(message: type[Any], fields: dict[str, Any]) -> bytes:
    """A request of pyroute2 without its header."""
    request = message()
    for name, value in fields.items():
        request[name] = value
    request.encode()
    return bytes(request.data[HEADER.size :])


@contextmanager
def _deadline() -> Iterator[None]:
    try:
        yield
    except TimeoutError as exc:
        raise DeadlineExceeded(f"the kernel did not answer over netlink in {TIMEOUT_SECONDS:g} s") from exc
