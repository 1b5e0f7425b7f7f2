"""Frames really pass: the plumbed taps of a pod's namespace, a machine played by another namespace, and the agent's
operation in it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from kuasar.workers.network import Network
from tests.integration.net.conftest import Maker
from tests.integration.net.wires import SECONDS, Namespace, Record, configure, machine, plumb, unplumb

MTU = 1450
BIG = 8 << 20


class Pod:
    """A pod's namespace behind the host's, and the machine's."""

    def __init__(self, host: Namespace, pod: Namespace, guest: Namespace) -> None:
        self.host, self.pod, self.guest = host, pod, guest


@pytest.fixture
def pod(namespace: Maker) -> Pod:
    """``eth0`` has 10.9.0.2, fd00:9::2 and the host at .1 and ::1 as its gateways."""
    host, pod, guest = namespace("host"), namespace("pod"), namespace("guest")
    host.ip("link", "add", "veth0", "mtu", str(MTU), "type", "veth", "peer", "name", "eth0", "netns", pod.name)
    pod.ip("link", "set", "eth0", "mtu", str(MTU))
    for where, name, last in ((host, "veth0", 1), (pod, "eth0", 2)):
        where.ip("link", "set", name, "up")
        where.ip("addr", "add", f"10.9.0.{last}/24", "dev", name)
        where.ip("addr", "add", f"fd00:9::{last}/64", "dev", name, "nodad")
    pod.ip("route", "add", "default", "via", "10.9.0.1")
    pod.ip("-6", "route", "add", "default", "via", "fd00:9::1")
    return Pod(host, pod, guest)


@pytest.fixture
def plumbed(pod: Pod) -> Iterator[Network]:
    record = Record()
    network = plumb(pod.pod.path, "traffic", record)
    with machine(pod.guest, network):
        configure(pod.guest, network.to_wire())
        yield network
    network.close()
    unplumb(pod.pod.path, record)


def test_ping_both_ways_and_both_families(pod: Pod, plumbed: Network) -> None:
    for address in ("10.9.0.1", "fd00:9::1"):
        pod.guest.execute("busybox", "ping", "-c", "2", "-W", "10", address)
    for address in ("10.9.0.2", "fd00:9::2"):
        pod.host.execute("busybox", "ping", "-c", "2", "-W", "10", address)


def test_the_pod_s_own_stack_answers_nothing(pod: Pod, plumbed: Network) -> None:
    """Nothing arrives at its addresses, so nobody but the guest answers for them."""
    pod.host.execute("busybox", "ping", "-c", "1", "-W", "10", "10.9.0.2")
    seen = pod.pod.execute("cat", "/proc/net/snmp").splitlines()
    names, values = (line.split() for line in seen if line.startswith("Icmp:"))
    assert values[names.index("InEchos")] == "0"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("upload", [True, False])
def test_much_over_tcp(pod: Pod, plumbed: Network, family: int, upload: bool) -> None:
    """Large segments leave and arrive whole: the virtio header carries their sizes and checksums."""
    server, client = pod.host.socket(family, socket.SOCK_STREAM), pod.guest.socket(family, socket.SOCK_STREAM)
    received: list[bytes] = []
    pattern = bytes(range(256)) * (BIG // 256)

    def serve() -> None:
        peer, _ = server.accept()
        with peer:
            peer.settimeout(SECONDS)
            if upload:
                received.append(read_all(peer))
            else:
                peer.sendall(pattern)

    with server, client:
        server.bind(("10.9.0.1" if family == socket.AF_INET else "fd00:9::1", 0))
        server.listen(1)
        thread = threading.Thread(target=serve)
        thread.start()
        client.connect(server.getsockname()[:2])
        if upload:
            client.sendall(pattern)
            client.shutdown(socket.SHUT_WR)
        else:
            received.append(read_all(client))
        thread.join()
    assert received == [pattern]


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("size", [1, 512, 1400, 4096, 60000])
def test_datagrams_of_any_size(pod: Pod, plumbed: Network, size: int) -> None:
    """From a question for the name server to what has to be fragmented."""
    server = pod.host.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client = pod.guest.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server, client:
        server.bind(("10.9.0.1", 0))
        client.sendto(b"q" * size, server.getsockname())
        question, asker = server.recvfrom(1 << 16)
        assert (question, asker[0]) == (b"q" * size, "10.9.0.2")
        server.sendto(b"a" * size, asker)
        assert client.recv(1 << 16) == b"a" * size


def test_several_interfaces_and_queues(namespace: Maker) -> None:
    host, pod, guest = namespace("host"), namespace("pod"), namespace("guest")
    for number in (0, 1, 2):
        name = f"net{number}"
        host.ip("link", "add", f"veth{number}", "type", "veth", "peer", "name", name, "netns", pod.name)
        for where, interface, last in ((host, f"veth{number}", 1), (pod, name, 2)):
            where.ip("link", "set", interface, "up")
            where.ip("addr", "add", f"10.9.{number}.{last}/24", "dev", interface)
    record = Record()
    network = plumb(pod.path, "several", record, queues=4)
    assert {card.name for card in network.interfaces} == {"net0", "net1", "net2"}
    assert all(len(card.fds) == 4 for card in network.interfaces)
    with machine(guest, network):
        configure(guest, network.to_wire())
        for number in (0, 1, 2):
            guest.execute("busybox", "ping", "-c", "1", "-W", "10", f"10.9.{number}.1")
            host.execute("busybox", "ping", "-c", "1", "-W", "10", f"10.9.{number}.2")
    network.close()
    unplumb(pod.path, record)
    assert record.holdings == []


def test_a_macvlan_carries_a_machine(namespace: Maker) -> None:
    """As the CNI plugin macvlan makes one: its parent stays outside."""
    host, outside, pod, guest = (namespace(role) for role in ("host", "outside", "pod", "guest"))
    host.ip("link", "add", "wire", "type", "veth", "peer", "name", "parent", "netns", outside.name)
    outside.ip("link", "add", "link", "parent", "name", "eth0", "netns", pod.name, "type", "macvlan", "mode", "bridge")
    for where, name in ((host, "wire"), (outside, "parent"), (pod, "eth0")):
        where.ip("link", "set", name, "up")
    host.ip("addr", "add", "10.9.0.1/24", "dev", "wire")
    pod.ip("addr", "add", "10.9.0.2/24", "dev", "eth0")
    record = Record()
    network = plumb(pod.path, "macvlan", record)
    with machine(guest, network):
        configure(guest, network.to_wire())
        guest.execute("busybox", "ping", "-c", "1", "-W", "10", "10.9.0.1")
        host.execute("busybox", "ping", "-c", "1", "-W", "10", "10.9.0.2")
    network.close()
    unplumb(pod.path, record)
