"""Network namespaces for one test, and a machine's card played by a tap in a namespace of its own."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from kuasar.agent import network as inside
from kuasar.agent.requests import Body
from kuasar.core.aio import Loop
from kuasar.core.namespaces import join_netns
from kuasar.core.taps import close_all, open_tap
from kuasar.workers import network
from kuasar.workers.network import Network

T = TypeVar("T")
SECONDS = 30.0
_TUNSETOFFLOAD = 0x400454D0
_OFFLOADS = 0x0F  # checksums, TSO4, TSO6, TSO with ECN: what QEMU's virtio-net switches on
_FRAME_BYTES = 1 << 17
_numbers = itertools.count()


class Namespace:
    """A named network namespace."""

    def __init__(self, role: str) -> None:
        self.name = f"kt-{os.getpid()}-{next(_numbers)}-{role}"
        self.path = f"/run/netns/{self.name}"
        run("ip", "netns", "add", self.name)
        self.ip("link", "set", "lo", "up")

    def ip(self, *args: str) -> str:
        return run("ip", "-n", self.name, *args)

    def json(self, *args: str) -> Any:
        return json.loads(run("ip", "-n", self.name, "-d", "-j", *args) or "[]")

    def tc(self, *args: str) -> str:
        return run("tc", "-n", self.name, *args)

    def execute(self, *args: str) -> str:
        return run("ip", "netns", "exec", self.name, *args)

    def call(self, function: Callable[[], T]) -> T:
        """``function`` in a thread that is in the namespace."""
        outcome: list[T] = []
        failure: list[BaseException] = []

        def work() -> None:
            try:
                join_netns(self.path)
                outcome.append(function())
            except BaseException as exc:
                failure.append(exc)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return outcome[0]

    def socket(self, family: int, kind: int) -> socket.socket:
        def make() -> socket.socket:
            sock = socket.socket(family, kind)
            sock.settimeout(SECONDS)
            return sock

        return self.call(make)

    def remove(self) -> None:
        with suppress(subprocess.CalledProcessError):
            run("ip", "netns", "del", self.name)


class Record:
    """The journal of one test: what is held, and all that ever was."""

    def __init__(self, fail_at: int = -1) -> None:
        self.holdings: list[tuple[str, str]] = []
        self.seen: list[tuple[str, str]] = []
        self._fail_at = fail_at

    def acquiring(self, kind: str, name: str) -> None:
        if len(self.seen) == self._fail_at:
            raise OSError(28, "No space left on device")
        self.holdings.append((kind, name))
        self.seen.append((kind, name))

    def released(self, kind: str, name: str) -> None:
        if (kind, name) in self.holdings:
            self.holdings.remove((kind, name))


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, argv, done.stdout, f"{done.stdout} {done.stderr}")
    return done.stdout


def run_loop(coro: Coroutine[Any, Any, T]) -> T:
    """``coro`` may use :func:`loop_of`."""
    loop = Loop()
    try:
        return loop.run(loop.wait_for(coro, time.monotonic() + SECONDS))
    finally:
        loop.close()


def plumb(netns: str, sandbox_id: str, record: Record, queues: int = 1, owner: int | None = None) -> Network:
    loop = Loop()
    try:
        return loop.run(network.plumb(loop, netns, sandbox_id, queues, record, owner))
    finally:
        loop.close()


def unplumb(netns: str, record: Record) -> None:
    loop = Loop()
    try:
        loop.run(network.unplumb(loop, netns, list(record.holdings), record))
    finally:
        loop.close()


def configure(namespace: Namespace, wire: dict[str, Any], seconds: float = SECONDS) -> dict[str, Any]:
    """The agent's operation, carried out in ``namespace``."""

    def work() -> dict[str, Any]:
        loop = Loop()
        try:
            return loop.run(inside.configure(loop, Body(wire), time.monotonic() + seconds))
        finally:
            loop.close()

    return namespace.call(work)


def open_card(guest: Namespace, name: str, mac: str) -> int:
    """A tap in the guest's namespace with the MAC address of the pod's interface."""
    fd = guest.call(lambda: open_tap(name, 1))[0]
    guest.ip("link", "set", name, "address", mac)
    return fd


@contextmanager
def machine(guest: Namespace, plumbed: Network) -> Iterator[list[int]]:
    """Cards of a machine: frames go between the taps and the guest's cards, as a VMM would carry them."""
    cards = [open_card(guest, f"nic{index}", card.mac) for index, card in enumerate(plumbed.interfaces)]
    stop = os.eventfd(0, os.EFD_CLOEXEC)
    ways: dict[int, int] = {}
    for card, fd in zip(plumbed.interfaces, cards, strict=True):
        ways |= dict.fromkeys(card.fds, fd)
        ways[fd] = card.fds[0]
    for fd in ways:
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _OFFLOADS)
    thread = threading.Thread(target=_carry, args=(ways, stop))
    thread.start()
    try:
        yield cards
    finally:
        os.eventfd_write(stop, 1)
        thread.join()
        os.close(stop)
        close_all(cards)


def _carry(ways: dict[int, int], stop: int) -> None:
    with select.epoll() as poll:
        poll.register(stop, select.EPOLLIN)
        for fd in ways:
            poll.register(fd, select.EPOLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == stop:
                    return
                with suppress(OSError):  # an interface that is down takes and gives no frames
                    while True:
                        os.write(ways[fd], os.read(fd, _FRAME_BYTES))
