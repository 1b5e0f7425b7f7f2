"""What is read from a pod's namespace, set up again inside, refused, undone, and found again after a death."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from kuasar.core.aio import Cancelled, Loop
from kuasar.core.errors import (
    AlreadyExists,
    BackendFailed,
    DeadlineExceeded,
    InvalidArgument,
    KuasarError,
    NotFound,
    Unimplemented,
)
from kuasar.core.netlink import RefusedError
from kuasar.core.taps import close_all, open_tap, tap_name
from kuasar.workers import network
from kuasar.workers.network import Network
from kuasar.workers.rtnetlink import Rtnetlink
from tests.integration.net.conftest import Maker
from tests.integration.net.wires import Namespace, Record, configure, open_card, plumb, unplumb

ID = "pod-1"


@pytest.fixture
def pod(namespace: Maker) -> Namespace:
    """Has ``eth0``, whose peer is in another namespace."""
    host, pod = namespace("host"), namespace("pod")
    add_interface(host, pod, "eth0")
    return pod


def add_interface(host: Namespace, pod: Namespace, name: str) -> None:
    host.ip("link", "add", f"p{name}", "type", "veth", "peer", "name", name, "netns", pod.name)
    host.ip("link", "set", f"p{name}", "up")
    pod.ip("link", "set", name, "up")


def is_untouched(pod: Namespace) -> bool:
    names = [link["ifname"] for link in pod.json("link")]
    return not any(name.startswith("kuasar") for name in names) and "ingress" not in pod.tc("qdisc", "show")


def wire_of(network: Network) -> dict[str, Any]:
    network.close()
    return network.to_wire()


# -- reading and setting up again ----------------------------------------------------------------------------------


def test_everything_is_set_up_again_inside(pod: Namespace, namespace: Maker) -> None:
    pod.ip("link", "set", "eth0", "mtu", "1400")
    pod.ip("addr", "add", "10.1.0.2/32", "dev", "eth0")
    pod.ip("addr", "add", "10.2.0.2/24", "brd", "+", "dev", "eth0", "noprefixroute")
    pod.ip("addr", "add", "10.3.0.2", "peer", "10.3.0.1", "dev", "eth0")
    pod.ip("addr", "add", "fd00::2/64", "dev", "eth0", "nodad")
    pod.ip("addr", "add", "fe80::1234/64", "dev", "eth0", "nodad")
    pod.ip("route", "add", "169.254.1.1", "dev", "eth0", "scope", "link")
    pod.ip("route", "add", "default", "via", "169.254.1.1", "dev", "eth0", "src", "10.1.0.2")
    pod.ip("route", "add", "10.8.0.0/16", "via", "172.16.0.1", "dev", "eth0", "onlink", "metric", "50", "mtu", "1300")
    pod.ip("route", "add", "10.7.0.0/16", "via", "inet6", "fe80::1", "dev", "eth0")
    pod.ip("route", "add", "blackhole", "10.6.0.0/16")
    pod.ip("-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0")
    pod.ip("-6", "route", "add", "fd01::/64", "dev", "eth0", "metric", "7")
    pod.ip("-6", "route", "add", "unreachable", "fd02::/64")
    pod.ip("neigh", "add", "169.254.1.1", "lladdr", "02:00:00:00:00:01", "dev", "eth0", "nud", "permanent")
    pod.ip("neigh", "add", "fe80::1", "lladdr", "02:00:00:00:00:01", "dev", "eth0", "nud", "permanent")
    guest = namespace("guest")
    record = Record()
    plumbed = plumb(pod.path, ID, record)
    wire = wire_of(plumbed)
    unplumb(pod.path, record)
    fd = open_card(guest, "nic0", plumbed.interfaces[0].mac)
    try:
        first = configure(guest, wire)
        assert configure(guest, wire) == first, "repeating changes nothing"
        for what in (["-4", "route"], ["-6", "route"], ["-4", "neigh"], ["-6", "neigh"]):
            assert comparable(guest, *what) == comparable(pod, *what)
        assert addresses(guest) == addresses(pod)
        assert guest.json("link", "show", "eth0")[0]["mtu"] == 1400
    finally:
        os.close(fd)
    assert {each["dst"] for each in first["routes"]} == {each["dst"] for each in wire["routes"]}
    assert sorted(first["neighbours"], key=str) == sorted(wire["neighbours"], key=str)
    assert first["interfaces"][0]["up"] and first["interfaces"][0]["name"] == "eth0"


def comparable(namespace: Namespace, *what: str) -> list[str]:
    """Lines of ``ip``, without what depends on a peer being there; the unwanted link-local route of a tap's namespace
    is the same on both sides."""
    lines = namespace.ip(*what, "show").splitlines()
    lines = [line.replace(" linkdown", "").replace(" dead", "") for line in lines]
    return sorted(" ".join(line.split()) for line in lines if "PERMANENT" in line or "neigh" not in what)


ADDRESS_FIELDS = ("local", "address", "prefixlen", "broadcast", "scope", "noprefixroute", "valid_life_time")


def addresses(namespace: Namespace) -> list[tuple[Any, ...]]:
    return sorted(
        tuple(str(info.get(field)) for field in ADDRESS_FIELDS)
        for info in namespace.json("addr", "show", "eth0")[0]["addr_info"]
    )


def test_a_card_that_comes_later_is_waited_for(pod: Namespace, namespace: Maker) -> None:
    guest, record = namespace("guest"), Record()
    plumbed = plumb(pod.path, ID, record)
    wire = wire_of(plumbed)
    unplumb(pod.path, record)
    with pytest.raises(DeadlineExceeded, match=f"{plumbed.interfaces[0].mac} has come for eth0"):
        configure(guest, wire, seconds=0.05)
    opened: list[int] = []
    hot_plug = threading.Thread(target=lambda: opened.append(open_card(guest, "nic0", plumbed.interfaces[0].mac)))
    hot_plug.start()
    try:
        assert configure(guest, wire)["interfaces"][0]["name"] == "eth0"
    finally:
        hot_plug.join()
        close_all(opened)


def test_cards_swap_their_names(namespace: Maker) -> None:
    host, pod, guest = namespace("host"), namespace("pod"), namespace("guest")
    for name in ("eth0", "eth1"):
        add_interface(host, pod, name)
    record = Record()
    plumbed = plumb(pod.path, ID, record)
    wire = wire_of(plumbed)
    unplumb(pod.path, record)
    macs = {card.name: card.mac for card in plumbed.interfaces}
    fds = [open_card(guest, "eth0", macs["eth1"]), open_card(guest, "eth1", macs["eth0"])]
    try:
        configure(guest, wire)
        assert {name: guest.json("link", "show", name)[0]["address"] for name in macs} == macs
    finally:
        close_all(fds)


def test_a_namespace_without_interfaces_has_an_empty_network(namespace: Maker) -> None:
    pod, record = namespace("pod"), Record()
    assert plumb(pod.path, ID, record).to_wire() == {"interfaces": [], "routes": [], "neighbours": []}
    assert record.seen == []


def test_the_tap_is_silent_and_of_the_interface_s_size(pod: Namespace) -> None:
    pod.ip("link", "set", "eth0", "mtu", "9000")
    record = Record()
    plumbed = plumb(pod.path, ID, record, queues=3)
    try:
        card = plumbed.interfaces[0]
        tap = pod.json("addr", "show", card.tap)[0]
        assert tap["mtu"] == 9000
        assert tap["addr_info"] == [], "an address of the tap would speak to the guest"
        assert tap["linkinfo"]["info_data"] | {"numqueues": 3} == tap["linkinfo"]["info_data"]
        assert tap["linkinfo"]["info_data"]["vnet_hdr"] and not tap["linkinfo"]["info_data"]["persist"]
        assert card.addresses == [
            f"{i['local']}/{i['prefixlen']}" for i in pod.json("addr", "show", "eth0")[0]["addr_info"]
        ]
        for fd in card.fds:
            assert not os.get_blocking(fd) and not os.get_inheritable(fd)
        assert record.holdings == [("tap", card.tap), ("ingress", "eth0")]
    finally:
        plumbed.close()
        unplumb(pod.path, record)
    assert is_untouched(pod)


# -- refusals ------------------------------------------------------------------------------------------------------


def test_what_cannot_be_carried_is_named(pod: Namespace) -> None:
    pod.ip("tuntap", "add", "tun9", "mode", "tun")
    record = Record()
    with pytest.raises(Unimplemented, match="interface tun9 is of kind tun"):
        plumb(pod.path, ID, record)
    pod.ip("link", "del", "tun9")
    pod.ip("link", "add", "br9", "type", "bridge")
    with pytest.raises(Unimplemented, match="interface br9 is of kind bridge"):
        plumb(pod.path, ID, record)
    pod.ip("link", "del", "br9")
    pod.ip("rule", "add", "from", "10.0.0.1", "table", "100")
    with pytest.raises(Unimplemented, match="rule of priority"):
        plumb(pod.path, ID, record)
    pod.ip("rule", "del", "from", "10.0.0.1", "table", "100")
    pod.ip("addr", "add", "10.0.0.2/24", "dev", "eth0")
    pod.ip("route", "add", "10.5.0.0/16", "nexthop", "via", "10.0.0.3", "nexthop", "via", "10.0.0.4")
    with pytest.raises(Unimplemented, match=r"10\.5\.0\.0/16 has several next hops"):
        plumb(pod.path, ID, record)
    assert record.seen == [] and is_untouched(pod)


def test_two_interfaces_with_one_mac_address_are_refused(namespace: Maker) -> None:
    host, pod = namespace("host"), namespace("pod")
    for name in ("eth0", "eth1"):
        add_interface(host, pod, name)
        pod.ip("link", "set", name, "address", "02:00:00:00:00:07")
    with pytest.raises(Unimplemented, match="same MAC address"):
        plumb(pod.path, ID, Record())


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("", InvalidArgument),
        ("/run/netns/kuasar-never-made", NotFound),
        ("/etc/hostname", InvalidArgument),
        ("/proc/self/ns/mnt", InvalidArgument),
        ("/proc/self/ns/net", Unimplemented),
        ("/proc/self/ns\0/net", InvalidArgument),
    ],
)
def test_paths_that_are_no_namespace_of_a_pod(path: str, error: type[KuasarError]) -> None:
    record = Record()
    with pytest.raises(error):
        plumb(path, ID, record)
    assert record.seen == []


@pytest.mark.parametrize("queues", [0, -1, 257])
def test_impossible_numbers_of_queues(pod: Namespace, queues: int) -> None:
    with pytest.raises(InvalidArgument, match="queues"):
        plumb(pod.path, ID, Record(), queues)


def test_somebody_else_s_redirection_stays(pod: Namespace) -> None:
    pod.tc("qdisc", "add", "dev", "eth0", "ingress")
    record = Record()
    with pytest.raises(AlreadyExists, match="eth0 has an ingress discipline"):
        plumb(pod.path, ID, record)
    assert record.holdings == []
    assert "ingress" in pod.tc("qdisc", "show", "dev", "eth0")


def test_a_tap_that_is_held_stays(pod: Namespace) -> None:
    fds = pod.call(lambda: open_tap(tap_name("other", "eth0"), 1))
    close_all(fds)
    held = pod.call(lambda: open_tap(tap_name(ID, "eth0"), 2))
    try:
        with pytest.raises(Unimplemented, match="kind tun"):
            plumb(pod.path, ID, Record())
        with pytest.raises(AlreadyExists):
            pod.call(lambda: open_tap(tap_name(ID, "eth0"), 1))
    finally:
        close_all(held)


# -- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(4))
def test_a_record_that_cannot_be_written_leaves_nothing(namespace: Maker, step: int) -> None:
    host, pod = namespace("host"), namespace("pod")
    for name in ("eth0", "eth1"):
        add_interface(host, pod, name)
    record = Record(fail_at=step)
    with pytest.raises(BackendFailed, match="No space left"):
        plumb(pod.path, ID, record)
    assert len(record.seen) == step and record.holdings == []
    assert is_untouched(pod)


STEPS_OF_TWO_INTERFACES = 2 * 7  # MTU and address mode, up, ingress, redirection; ingress, redirection; taps


@pytest.mark.parametrize("step", range(STEPS_OF_TWO_INTERFACES))
def test_a_fault_at_each_step_leaves_nothing(namespace: Maker, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses one change (or a tap) after another; then the same works."""
    host, pod = namespace("host"), namespace("pod")
    for name in ("eth0", "eth1"):
        add_interface(host, pod, name)
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if done == step + 1:
            raise RefusedError(12, "Cannot allocate memory")

    change = Rtnetlink._change

    def faulty(self: Rtnetlink, message: Any, kind: int, flags: int, /, **fields: Any) -> None:
        count()
        change(self, message, kind, flags, **fields)

    def faulty_tap(name: str, queues: int) -> list[int]:
        count()
        return open_tap(name, queues)

    record = Record()
    with monkeypatch.context() as patch:
        patch.setattr(Rtnetlink, "_change", faulty)
        patch.setattr(network, "open_tap", faulty_tap)
        with pytest.raises(BackendFailed, match="Cannot allocate memory"):
            plumb(pod.path, ID, record)
    assert record.holdings == [] and len(record.seen) == 4
    assert is_untouched(pod)
    plumb(pod.path, ID, record).close()
    unplumb(pod.path, record)
    assert is_untouched(pod)


def test_a_cancelled_caller_leaves_nothing(pod: Namespace) -> None:
    record = Record()
    loop = Loop()

    async def cancel_at(turns: int) -> bool:
        task = loop.spawn(network.plumb(loop, pod.path, ID, 2, record))
        for _ in range(turns):
            await loop.sleep(0)
        task.cancel()
        try:
            (await task).close()
        except Cancelled:
            return True
        await network.unplumb(loop, pod.path, list(record.holdings), record)
        return False

    async def all_of_them() -> None:
        for turns in range(5):
            await cancel_at(turns)
            assert record.holdings == []
            assert is_untouched(pod)

    try:
        loop.run(all_of_them())
    finally:
        loop.close()


# -- after a death -------------------------------------------------------------------------------------------------


def test_a_successor_removes_by_name(pod: Namespace) -> None:
    """The worker dies, its machine has the tap open; the record says what there is."""
    record = Record()
    plumbed = plumb(pod.path, ID, record)
    machines = [os.dup(fd) for fd in plumbed.interfaces[0].fds]
    plumbed.close()
    assert plumbed.interfaces[0].tap in pod.ip("link")
    unplumb(pod.path, record)
    assert record.holdings == [] and is_untouched(pod)
    unplumb(pod.path, record)
    close_all(machines)


def test_a_successor_removes_what_was_only_announced(pod: Namespace) -> None:
    record = Record()
    for kind, name in (("tap", tap_name(ID, "eth0")), ("ingress", "eth0"), ("ingress", "eth7"), ("mount", "/x")):
        record.acquiring(kind, name)
    unplumb(pod.path, record)
    assert record.holdings == [("mount", "/x")] and is_untouched(pod)


def test_machine_and_worker_dead_leave_only_the_ingress_discipline(pod: Namespace) -> None:
    record = Record()
    plumb(pod.path, ID, record).close()
    assert "kuasar" not in pod.ip("link")
    unplumb(pod.path, record)
    assert record.holdings == [] and is_untouched(pod)
    plumb(pod.path, ID, record).close()
    unplumb(pod.path, record)


def test_a_namespace_that_has_gone_is_unplumbed(pod: Namespace, namespace: Maker) -> None:
    record = Record()
    plumb(pod.path, ID, record).close()
    pod.remove()
    unplumb(pod.path, record)
    assert record.holdings == []
    record.acquiring("ingress", "eth0")
    unplumb("/etc/hostname", record)
    assert record.holdings == []
