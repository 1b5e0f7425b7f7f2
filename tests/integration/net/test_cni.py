"""Pods that the CNI plugins have connected to a bridge, as etc/cni/kuasar.conflist does: pod to pod, pod to host, and
the plugins find everything as they left it."""

from __future__ import annotations

import json
import os
import string
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kuasar.workers.network import Network
from tests.integration.net.conftest import Maker
from tests.integration.net.wires import SECONDS, Namespace, Record, configure, machine, plumb, unplumb

PLUGINS = Path("/usr/lib/cni")
CONFLIST = Path(__file__).parents[3] / "etc" / "cni" / "kuasar.conflist"

if not (PLUGINS / "bridge").exists():
    pytest.skip("needs the CNI plugins", allow_module_level=True)


class Cni:
    """The plugin of our configuration, run in the namespace that plays the host."""

    def __init__(self, host: Namespace, ipam_dir: Path) -> None:
        self._host = host
        values = {"network": "test", "bridge": "kbr0", "subnet": "10.77.0.0/24", "ipam_dir": str(ipam_dir)}
        conflist = json.loads(string.Template(CONFLIST.read_text()).substitute(values))
        self._config = {"cniVersion": "1.0.0", "name": "test"} | conflist["plugins"][0]
        self._config["ipam"]["ranges"].append([{"subnet": "fd77::/64"}])
        self._config["ipam"]["routes"].append({"dst": "::/0"})

    def run(self, command: str, pod: Namespace, previous: dict[str, Any] | None = None) -> dict[str, Any]:
        settings = {"CNI_COMMAND": command, "CNI_CONTAINERID": pod.name, "CNI_NETNS": pod.path, "CNI_IFNAME": "eth0"}
        environment = os.environ | settings | {"CNI_PATH": str(PLUGINS)}
        config = self._config | ({} if previous is None else {"prevResult": previous})
        done = subprocess.run(
            ["ip", "netns", "exec", self._host.name, PLUGINS / "bridge"],
            input=json.dumps(config),
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        result: dict[str, Any] = json.loads(done.stdout or "{}")
        return result


class Machine:
    """A pod's machine on the bridge."""

    def __init__(self, guest: Namespace, network: Network) -> None:
        self.guest, self.network = guest, network
        addresses = [address.partition("/")[0] for address in network.interfaces[0].addresses]
        self.v4 = next(address for address in addresses if "." in address)
        self.v6 = next(address for address in addresses if address.startswith("fd77:"))


@pytest.fixture
def host(namespace: Maker) -> Namespace:
    return namespace("host")


@pytest.fixture
def machines(namespace: Maker, host: Namespace, tmp_path: Path) -> Iterator[list[Machine]]:
    """Two of them. At their end the plugins have checked and removed what they made."""
    cni = Cni(host, tmp_path / "ipam")
    with ExitStack() as stack:
        made = []
        for number in (1, 2):
            pod, guest, record = namespace(f"pod{number}"), namespace(f"guest{number}"), Record()
            result = cni.run("ADD", pod)
            network = plumb(pod.path, pod.name, record)
            stack.callback(cni.run, "DEL", pod)
            stack.callback(unplumb, pod.path, record)
            stack.callback(network.close)
            stack.enter_context(machine(guest, network))
            configure(guest, network.to_wire())
            cni.run("CHECK", pod, result)
            made.append(Machine(guest, network))
        yield made
    assert [link["ifname"] for link in host.json("link") if link.get("master") == "kbr0"] == []
    assert not list((tmp_path / "ipam" / "test").glob("10.*")), "addresses are free again"


def ping(where: Namespace, address: str) -> None:
    where.execute("busybox", "ping", "-c", "2", "-W", "10", address)


def test_pod_to_pod(machines: list[Machine]) -> None:
    one, two = machines
    for address in (two.v4, two.v6):
        ping(one.guest, address)
    ping(two.guest, one.v4)


def test_pod_to_host_and_back(machines: list[Machine], host: Namespace) -> None:
    for each in machines:
        ping(each.guest, "10.77.0.1")
        ping(each.guest, "fd77::1")
        ping(host, each.v4)
        ping(host, each.v6)


def test_the_guest_is_told_what_cni_said(machines: list[Machine]) -> None:
    one = machines[0]
    assert {route["dst"]: route["gateway"] for route in one.network.routes} == {
        "0.0.0.0/0": "10.77.0.1",
        "::/0": "fd77::1",
    }
    assert f"{one.v4}/24" in one.guest.ip("addr", "show", "eth0")
    assert one.guest.json("link", "show", "eth0")[0]["address"] == one.network.interfaces[0].mac
