"""Pods on the pod network: reachable from each other and from the host; names and DNS as the pod asks for."""

from __future__ import annotations

import http.server
import ipaddress
import os
import threading
import urllib.request
from collections.abc import Iterator

import pytest

from kuasar.api.gen.cri.v1.pod_pb2 import DNSConfig
from tests.deadline import eventually
from tests.e2e.engines import EXEC, HOST_NETWORK, SHARED_KERNEL, SHELL
from tests.e2e.harness import Container, Node, Pod
from tests.e2e.stack import GATEWAY_ADDRESS, SUBNET

SERVE = ["sh", "-c", "mkdir /www; hostname > /www/index.html; exec httpd -f -p 8080 -h /www"]


def fetch(url: str) -> str:
    """A page, asked for from the host; empty while nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


@pytest.fixture
def host_server() -> Iterator[int]:
    """A web server of the host on all addresses; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"the host\n")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("0.0.0.0", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_pods_have_addresses_of_their_own(node: Node) -> None:
    addresses = {node.pod().address for _ in range(2)}
    assert len(addresses) == 2
    assert all(ipaddress.ip_address(address) in ipaddress.ip_network(SUBNET) for address in addresses)


@pytest.mark.needs(SHARED_KERNEL)
def test_containers_are_in_the_network_of_their_pod(node: Node) -> None:
    def network(container: Container) -> str:
        return os.readlink(f"/proc/{container.pid}/ns/net")

    pod, host = node.pod(), os.readlink("/proc/self/ns/net")
    one, two, other = network(pod.run_idle("one")), network(pod.run_idle("two")), network(node.pod().run_idle())
    assert one == two
    assert len({one, other, host}) == 3


@pytest.mark.needs(HOST_NETWORK, SHARED_KERNEL)
def test_containers_are_in_the_network_of_the_host(node: Node) -> None:
    container = node.pod(host_network=True).run_idle()
    assert os.readlink(f"/proc/{container.pid}/ns/net") == os.readlink("/proc/self/ns/net")


@pytest.mark.needs(SHELL, EXEC)
def test_pod_to_pod_and_host_to_pod(node: Node) -> None:
    server, client = node.pod("server"), node.pod("client")
    server.run(SERVE)
    url = f"http://{server.address}:8080/"
    eventually(lambda: fetch(url), "the pod's server", until=lambda page: page == "server\n")
    assert client.run_idle().sh(f"wget -qO- {url}") == "server\n"


@pytest.mark.needs(SHELL, EXEC)
def test_pod_to_host(pod: Pod, host_server: int) -> None:
    assert pod.run_idle().sh(f"wget -qO- http://{GATEWAY_ADDRESS}:{host_server}/") == "the host\n"


@pytest.mark.needs(SHELL, EXEC)
def test_address_and_loopback_are_seen_inside(pod: Pod) -> None:
    container = pod.run_idle()
    assert f"inet {pod.address}/" in container.sh("ip -4 addr show eth0")
    assert "inet 127.0.0.1/8" in container.sh("ip -4 addr show lo")


@pytest.mark.needs(SHELL, EXEC)
def test_a_restarted_container_has_the_same_network(pod: Pod) -> None:
    first = pod.run_idle()
    before = first.sh("ip -4 addr show eth0")
    first.stop()
    first.remove()
    assert pod.run_idle().sh("ip -4 addr show eth0") == before


@pytest.mark.needs(SHELL, EXEC)
def test_hostname_and_hosts(node: Node) -> None:
    pod = node.pod(hostname="my-name")
    container: Container = pod.run_idle()
    assert container.sh("hostname; cat /etc/hostname") == "my-name\nmy-name\n"
    assert "localhost" in container.sh("cat /etc/hosts")
    assert container.sh("echo $HOSTNAME").strip() == "my-name"


@pytest.mark.needs(SHELL, EXEC)
def test_dns_configuration(node: Node) -> None:
    dns = DNSConfig(servers=["10.96.0.10", "8.8.8.8"], searches=["ns.svc.local", "svc.local"], options=["ndots:5"])
    lines = node.pod(dns=dns).run_idle().sh("cat /etc/resolv.conf").splitlines()
    assert [line for line in lines if line] == [
        "search ns.svc.local svc.local",
        "nameserver 10.96.0.10",
        "nameserver 8.8.8.8",
        "options ndots:5",
    ]


@pytest.mark.needs(SHELL, EXEC)
def test_without_dns_configuration_the_host_s_is_used(pod: Pod) -> None:
    with open("/etc/resolv.conf", encoding="utf-8") as file:
        assert pod.run_idle().sh("cat /etc/resolv.conf") == file.read()


@pytest.mark.needs(SHELL, EXEC)
def test_files_of_the_pod_are_shared_by_its_containers(pod: Pod) -> None:
    one, two = pod.run_idle("one"), pod.run_idle("two")
    one.sh("echo 10.9.8.7 added >> /etc/hosts")
    assert "10.9.8.7 added" in two.sh("cat /etc/hosts")
