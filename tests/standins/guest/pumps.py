"""Network cards of a guest: a tap in its network namespace, and frames carried to and from the VMM's taps."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import threading
from contextlib import suppress

from kuasar.core.namespaces import CLONE_NEWNET, setns

_TUNSETIFF, _TUNGETIFF, _TUNGETVNETHDRSZ, _TUNSETVNETHDRSZ = 0x400454CA, 0x800454D2, 0x800454D7, 0x400454D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_SIOCSIFMTU, _SIOCSIFHWADDR = 0x8922, 0x8924
_REQUEST = struct.Struct("16sH22x")
_MTU = struct.Struct("16si20x")
_HARDWARE_ADDRESS = struct.Struct("16sH6s16x")
_ARPHRD_ETHER = 1
_FRAME_BYTES = 1 << 17


class Pumps:
    """One thread that carries the frames of all cards, until :meth:`close`."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._poll.register(self._wake, select.EPOLLIN)
        self._targets: dict[int, list[int]] = {}
        self._stopped = False
        self._thread: threading.Thread | None = None

    def add(self, card: int, taps: list[int]) -> None:
        """Carry between the guest's card and the VMM's taps; all descriptors are ours from now on."""
        for fd in (card, *taps):
            os.set_blocking(fd, False)
        self._targets[card] = taps
        for tap in taps:
            self._targets[tap] = [card]
        for fd in (card, *taps):
            self._poll.register(fd, select.EPOLLIN)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._stopped:
            for fd, _ in self._poll.poll():
                if fd != self._wake:
                    self._carry(fd)

    def _carry(self, source: int) -> None:
        """One frame: the others get their turn. A card that is down drops it, as the real one does."""
        with suppress(OSError):
            frame = os.read(source, _FRAME_BYTES)
            os.write(self._targets[source][0], frame)

    def close(self) -> None:
        """Stop; the guest's cards are gone."""
        self._stopped = True
        os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join()
        for fd in (*self._targets, self._wake):
            os.close(fd)
        self._poll.close()


def make_card(guest: int, name: str, mac: str, mtu: int, like: int) -> int:
    """A tap ``name`` in the network namespace of process ``guest``, whose frames have the form of those of the tap
    ``like``. The caller closes."""
    flags = struct.unpack_from("16sH", fcntl.ioctl(like, _TUNGETIFF, bytes(_REQUEST.size)))[1] & _IFF_VNET_HDR
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(f"/proc/{guest}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(there, CLONE_NEWNET)
        try:
            card = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(card, _TUNSETIFF, _REQUEST.pack(name.encode(), _IFF_TAP | _IFF_NO_PI | flags))
                if flags:
                    fcntl.ioctl(card, _TUNSETVNETHDRSZ, fcntl.ioctl(like, _TUNGETVNETHDRSZ, bytes(4)))
                _set_up(name, mac, mtu)
            except BaseException:
                os.close(card)
                raise
        finally:
            setns(here, CLONE_NEWNET)
    finally:
        os.close(here)
        os.close(there)
    return card


def _set_up(name: str, mac: str, mtu: int) -> None:
    address = bytes.fromhex(mac.replace(":", ""))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFHWADDR, _HARDWARE_ADDRESS.pack(name.encode(), _ARPHRD_ETHER, address))
        if mtu:
            fcntl.ioctl(sock, _SIOCSIFMTU, _MTU.pack(name.encode(), mtu))
