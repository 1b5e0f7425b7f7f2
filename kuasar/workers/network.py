"""A machine's network: each interface of the pod's network namespace joined to a tap, both ways, by tc.

The namespace's interface keeps its addresses, because CNI plugins look for them when they check and when they tear
down. It is a mere wire nevertheless: every frame that arrives is redirected before the namespace's stack sees it, so
that nobody but the guest answers ARP or anything else. The guest's card has the interface's own MAC address.

All work is done over netlink in a short-lived thread that moves into the namespace. A tap ends with its last
descriptor, that is with worker and machine; what remains then is an ingress discipline on the pod's interface. Both
are in the record before they are made (``tap`` and ``ingress``), so that :func:`unplumb` finds them by name.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from kuasar.core import log
from kuasar.core.aio import Loop
from kuasar.core.errors import AlreadyExists, InvalidArgument, KuasarError, NotFound, Unimplemented, wrap
from kuasar.core.namespaces import is_own_netns, join_netns
from kuasar.core.netlink import RefusedError
from kuasar.core.taps import MAX_QUEUES, close_all, give_tap, open_tap, tap_name
from kuasar.core.threads import in_thread
from kuasar.workers.interfaces import Interface, Survey, survey
from kuasar.workers.rtnetlink import Rtnetlink

TAP, INGRESS = "tap", "ingress"
"""Kinds of holdings. Names: of the tap, and of the pod's interface."""

_GONE = (errno.ENODEV, errno.ENOENT, errno.EINVAL)  # EINVAL: there is no ingress discipline


class Journal(Protocol):
    """Where names are written before the things are made; a backend's ``Host`` is one."""

    def acquiring(self, kind: str, name: str) -> None:
        """Record a kernel object before making it."""

    def released(self, kind: str, name: str) -> None:
        """Strike it out after freeing it."""


@dataclass(frozen=True)
class Card:
    """One network card of the machine: an interface of the pod and the tap it is joined to."""

    interface: Interface
    tap: str
    fds: list[int]
    """A descriptor per queue, owned by the :class:`Network`; non-blocking, frames carry a virtio header. None if the
    tap was given to a user."""

    @property
    def name(self) -> str:
        """Of the interface, in the namespace and in the guest."""
        return self.interface.name

    @property
    def mac(self) -> str:
        """The guest's card must have it."""
        return self.interface.mac

    @property
    def mtu(self) -> int:
        """Bytes; ``host_mtu`` of the guest's card."""
        return self.interface.mtu

    @property
    def addresses(self) -> list[str]:
        """Each with its prefix length."""
        return [f"{each['address']}/{each['prefix']}" for each in self.interface.addresses]


@dataclass(frozen=True)
class Network:
    """A plumbed namespace."""

    netns: str
    interfaces: tuple[Card, ...]
    routes: tuple[dict[str, Any], ...]
    neighbours: tuple[dict[str, Any], ...]

    def to_wire(self) -> dict[str, Any]:
        """The body of the agent's operation ``network``."""
        return {
            "interfaces": [
                {"name": card.name, "mac": card.mac, "mtu": card.mtu, "addresses": list(card.interface.addresses)}
                for card in self.interfaces
            ],
            "routes": list(self.routes),
            "neighbours": list(self.neighbours),
        }

    def close(self) -> None:
        """Close our descriptors of the taps: when the machine has its own, or when there will be none. Harmless to
        repeat."""
        for card in self.interfaces:
            close_all(card.fds)


async def plumb(
    loop: Loop, netns: str, sandbox_id: str, queues: int, journal: Journal, owner: int | None = None
) -> Network:
    """Join every interface of ``netns`` but ``lo`` to a tap of ``queues`` queues; undoes all on failure. With
    ``owner`` taps have one queue and are left for a process of that user to open by their names.

    Not to be repeated before :func:`unplumb`. Raises :class:`NotFound` when the namespace is gone,
    :class:`InvalidArgument` when the path is none, :class:`Unimplemented` naming an interface that cannot be carried or
    when the namespace is the host's, :class:`AlreadyExists` when somebody has put a tap or an ingress discipline there.
    """
    if not netns:
        raise InvalidArgument("netns: a machine needs a network namespace of its own", field="netns")
    if not 1 <= queues <= MAX_QUEUES:
        raise InvalidArgument(f"queues: {queues} is not within 1 and {MAX_QUEUES}", field="queues")
    if is_own_netns(netns):
        raise Unimplemented("a machine cannot use the host's network", capability="host-network")
    try:
        found = await in_thread(loop, lambda: _read(netns))
    except OSError as exc:
        raise wrap(exc, f"cannot read the network of {netns}") from exc
    names = [
        (kind, name)
        for interface in found.interfaces
        for kind, name in ((TAP, tap_name(sandbox_id, interface.name)), (INGRESS, interface.name))
    ]
    recorded: list[tuple[str, str]] = []
    cards: list[Card] = []
    undo = ExitStack()
    try:
        for kind, name in names:
            recorded.append((kind, name))
            journal.acquiring(kind, name)
        await in_thread(loop, lambda: _join(found, netns, sandbox_id, queues, owner, cards, undo))
        return Network(netns, tuple(cards), found.routes, found.neighbours)
    except BaseException as exc:
        # Also when the caller was cancelled: the thread has finished in any case, with whatever outcome.
        for card in cards:
            close_all(card.fds)
        if _undone(netns, undo):
            for kind, name in recorded:
                journal.released(kind, name)
        if isinstance(exc, OSError):
            raise wrap(exc, f"cannot join the network of {netns} to a machine") from exc
        raise


async def unplumb(loop: Loop, netns: str, holdings: Iterable[tuple[str, str]], journal: Journal) -> None:
    """Remove what ``holdings`` (of the record; other kinds are ignored) names, and strike it out.

    Harmless to repeat; the namespace may be gone. Raises :class:`BackendFailed` and keeps the names when the kernel
    refuses.
    """
    ours = [(kind, name) for kind, name in holdings if kind in (TAP, INGRESS)]
    if not ours:
        return
    try:
        await in_thread(loop, lambda: _remove(netns, ours))
    except (NotFound, InvalidArgument):
        log.info("the network namespace is gone, and all in it", netns=netns)
    except OSError as exc:
        raise wrap(exc, f"cannot take the network of {netns} from the machine") from exc
    for kind, name in ours:
        journal.released(kind, name)


# -- in the namespace ----------------------------------------------------------------------------------------------


def _read(netns: str) -> Survey:
    join_netns(netns)
    with Rtnetlink() as netlink:
        return survey(netlink)


def _join(
    found: Survey,
    netns: str,
    sandbox_id: str,
    queues: int,
    owner: int | None,
    cards: list[Card],
    undo: ExitStack,
) -> None:
    """Make everything. What must be undone in the namespace goes on ``undo``, to be run there; taps end by closing,
    unless they are given away."""
    join_netns(netns)
    with Rtnetlink() as netlink:
        for interface in found.interfaces:
            name = tap_name(sandbox_id, interface.name)
            cards.append(Card(interface, name, open_tap(name, queues if owner is None else 1)))
            index = netlink.index(name)
            if index is None:
                raise NotFound(f"the tap {name} has gone at once")
            if owner is not None:
                undo.callback(_delete_tap, name)
                give_tap(cards[-1].fds, owner)
            netlink.set_up(index, interface.mtu)
            netlink.add_ingress(index)
            netlink.redirect(index, interface.index)
            _add_ingress(netlink, interface)
            undo.callback(_delete_ingress, interface.index)
            netlink.redirect(interface.index, index)


def _add_ingress(netlink: Rtnetlink, interface: Interface) -> None:
    try:
        netlink.add_ingress(interface.index)
    except RefusedError as exc:
        if exc.errno != errno.EEXIST:
            raise
        raise AlreadyExists(
            f"interface {interface.name} has an ingress discipline already: something else redirects its frames"
        ) from exc


def _delete_tap(name: str) -> None:
    with Rtnetlink() as netlink:
        index = netlink.index(name)
        if index is not None:
            netlink.delete_link(index)


def _delete_ingress(index: int) -> None:
    with Rtnetlink() as netlink:
        try:
            netlink.delete_ingress(index)
        except RefusedError as exc:
            if exc.errno not in _GONE:
                raise


def _undone(netns: str, undo: ExitStack) -> bool:
    """Run ``undo`` in the namespace; whether nothing is left. Blocks for a few milliseconds, so that neither
    cancellation nor a closing loop can cut it short."""

    def work() -> None:
        with suppress(NotFound, InvalidArgument):
            join_netns(netns)
            undo.close()

    return _succeeds(work, "the network of a machine that was not made could not be removed", netns)


def _succeeds(work: Callable[[], None], complaint: str, netns: str) -> bool:
    failure: list[Exception] = []

    def guarded() -> None:
        try:
            work()
        except (OSError, KuasarError) as exc:
            failure.append(exc)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    for exc in failure:
        log.error(complaint, netns=netns, error=exc)
    return not failure


def _remove(netns: str, holdings: Iterable[tuple[str, str]]) -> None:
    join_netns(netns)
    with Rtnetlink() as netlink:
        for kind, name in holdings:
            index = netlink.index(name)
            if index is None:
                continue
            try:
                if kind == TAP:
                    netlink.delete_link(index)
                else:
                    netlink.delete_ingress(index)
            except RefusedError as exc:
                if exc.errno not in _GONE:
                    raise
