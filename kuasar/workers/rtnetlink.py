"""A rtnetlink socket of the host: pyroute2's messages, encoded and decoded, over a plain socket.

pyroute2's own sockets bring an asyncio loop, which costs a worker 6 MiB and 20 ms; its messages alone cost 2 MiB and
5 ms. The socket belongs to the network namespace of the thread that opened it, and to that thread.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from pyroute2.netlink.rtnl.tcmsg import cls_u32, tcmsg

from kuasar.core.errors import BackendFailed, DeadlineExceeded

TC_H_INGRESS = 0xFFFFFFF1
_INGRESS_HANDLE = 0xFFFF0000
_ETH_P_ALL = 3

_NEWLINK, _DELLINK, _GETLINK, _GETADDR, _GETROUTE, _GETNEIGH, _GETRULE = 16, 17, 18, 22, 26, 30, 34
_NEWQDISC, _DELQDISC, _NEWTFILTER = 36, 37, 44
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP, _EXCLUSIVE, _CREATE = 0x1, 0x4, 0x300, 0x200, 0x400
_DUMP_INTERRUPTED = 0x10
_CAPPED, _ACK_TLVS = 0x100, 0x200
_SOL_NETLINK, _NETLINK_EXT_ACK = 270, 11
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ATTRIBUTE_MESSAGE = 1
_RECEIVE_BYTES = 1 << 16  # the kernel sends at most half of it at once
_TIMEOUT_SECONDS = 10.0
_DUMP_ATTEMPTS = 5
_IFF_UP = 1
_NO_LINK_LOCAL = {"attrs": [["AF_INET6", {"attrs": [["IFLA_INET6_ADDR_GEN_MODE", 1]]}]]}


class RefusedError(OSError):
    """The kernel said no: errno, and its own words where it has some."""


class Rtnetlink:
    """One socket; a context manager. Everything raises :class:`RefusedError` with the kernel's errno."""

    def __init__(self) -> None:
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        try:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            self._socket.bind((0, 0))
            self._socket.settimeout(_TIMEOUT_SECONDS)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Rtnetlink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

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
        self._send(message, kind, _REQUEST | _ACK | flags, fields)
        for _ in self._answers():
            pass

    def _dump(self, message: type[Any], kind: int) -> list[Any]:
        for _ in range(_DUMP_ATTEMPTS):
            self._send(message, kind, _REQUEST | _DUMP, {"family": socket.AF_UNSPEC})
            found, interrupted = [], False
            for flags, data in self._answers():
                interrupted |= bool(flags & _DUMP_INTERRUPTED)
                item = message(data)
                item.decode()
                found.append(item)
            if not interrupted:
                return found
        raise BackendFailed(f"the namespace's network changes all the time: {_DUMP_ATTEMPTS} listings were interrupted")

    def _send(self, message: type[Any], kind: int, flags: int, fields: dict[str, Any]) -> None:
        self._sequence += 1
        request = message()
        for name, value in fields.items():
            request[name] = value
        request["header"]["type"] = kind
        request["header"]["flags"] = flags
        request["header"]["sequence_number"] = self._sequence
        request.encode()
        self._socket.send(request.data)

    def _answers(self) -> Iterator[tuple[int, bytes]]:
        """(flags, message) of each answer to the last request, up to its end."""
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except TimeoutError as exc:
                raise DeadlineExceeded(f"the kernel did not answer over netlink in {_TIMEOUT_SECONDS:g} s") from exc
            offset = 0
            while offset < len(data):
                length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
                message = data[offset : offset + length]
                offset += (length + 3) & ~3
                if sequence != self._sequence:
                    continue
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    _raise_if_refused(message, flags)
                    return
                yield flags, message


def _raise_if_refused(message: bytes, flags: int) -> None:
    if len(message) < _HEADER.size + 4:
        return
    (code,) = struct.unpack_from("=i", message, _HEADER.size)
    if code < 0:
        raise RefusedError(-code, _kernels_words(message, flags) or os.strerror(-code))


def _kernels_words(message: bytes, flags: int) -> str:
    """The text that an extended acknowledgement carries; empty if there is none."""
    if not flags & _ACK_TLVS:
        return ""
    offset = _HEADER.size + 4
    (request_length,) = struct.unpack_from("=I", message, offset)
    offset += _HEADER.size if flags & _CAPPED else (request_length + 3) & ~3
    while offset + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, offset)
        if length < _ATTRIBUTE.size:
            break
        if kind == _ATTRIBUTE_MESSAGE:
            return message[offset + _ATTRIBUTE.size : offset + length].rstrip(b"\0").decode(errors="replace")
        offset += (length + 3) & ~3
    return ""
