"""The machine with a guest behind it: the real agent, on what the stand-in plugs in."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from kuasar.agent.client import AgentClient
from kuasar.backends.base import Nic
from kuasar.backends.firecracker import bodies
from kuasar.backends.firecracker.drives import Drives
from kuasar.core.errors import ResourceExhausted
from tests.integration.firecracker.rig import Rig, guest
from tests.integration.net.wires import Namespace, Record, plumb, unplumb
from tests.needs import GUEST_IMAGE, IMAGE, ROOT
from tests.standins.guest.server import running_hardware

pytestmark = [ROOT, IMAGE]


@pytest.fixture
def hardware() -> Iterator[str]:
    """What guests are made of."""
    with running_hardware() as path:
        yield path


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    """A machine that boots the guest image."""
    made = make_rig()
    made.image = str(GUEST_IMAGE)
    return made


@pytest.fixture
def agent_of() -> Iterator[Callable[[Rig], AgentClient]]:
    """Connects to the agent of a rig's guest."""
    made: list[AgentClient] = []

    def connect(rig: Rig) -> AgentClient:
        made.append(rig.loop.run(rig.machine.open_channel(time.monotonic() + 60.0)))
        return made[-1]

    yield connect
    for client in made:
        client.close()


def call(rig: Rig, client: AgentClient, op: str, body: Mapping[str, Any] | None = None) -> Any:
    return rig.loop.run(client.call(op, dict(body or {}), deadline=time.monotonic() + 60.0))


def test_the_agent_answers_and_its_end_is_the_machine_s(
    rig: Rig, hardware: str, agent_of: Callable[[Rig], AgentClient]
) -> None:
    rig.boot(rig.stand_in(STANDIN_HARDWARE=hardware))
    for _ in range(2):  # a successor connects anew
        client = agent_of(rig)
        assert call(rig, client, "info")["containers"] == []
    proof = call(
        rig,
        client,
        "guest.identity",
        {"time_ns": time.time_ns(), "entropy": bytes(64), "machine_id": "7" * 32, "hostname": "pod"},
    )
    assert (proof["hostname"], proof["machine_id"]) == ("pod", "7" * 32)
    call(rig, client, "shutdown", {"grace": 0.0})
    assert rig.loop.run(rig.process.ended_by(time.monotonic() + 60.0))
    assert "kuasar-guest: end: the agent exited with 0" in (rig.directory / "console").read_text()


def test_a_vmm_that_is_killed_takes_its_guest_along(
    rig: Rig, hardware: str, agent_of: Callable[[Rig], AgentClient]
) -> None:
    rig.boot(rig.stand_in(STANDIN_HARDWARE=hardware))
    agent_of(rig)
    rig.end()
    assert not rig.jail.exists()


def test_drives_are_filled_and_emptied(rig: Rig, hardware: str, agent_of: Callable[[Rig], AgentClient]) -> None:
    rig.boot(rig.stand_in(STANDIN_HARDWARE=hardware))
    client = agent_of(rig)
    rig.host.remember(drive_counts=(2, 1), drives={})

    async def ask(op: str, body: Mapping[str, Any], deadline: float | None) -> Any:
        return await client.call(op, dict(body), deadline=time.monotonic() + 60.0)

    drives = Drives(rig.host, rig.machine, ask)
    image = rig.directory / "image"
    image.write_bytes(b"x" * (1 << 20))
    fill = drives.fill("k1", str(image), True, None)
    rig.loop.run(fill)
    rig.loop.run(drives.fill("k1", str(image), True, None))  # by a successor
    rig.loop.run(drives.fill("k2", str(image), True, None))
    with pytest.raises(ResourceExhausted, match=r"all 2 read-only drives of the machine are taken, k3 has none"):
        rig.loop.run(drives.fill("k3", str(image), True, None))
    rig.loop.run(drives.fill("k3", str(image), False, None))
    for _ in range(2):
        rig.loop.run(drives.empty("k1"))
    rig.loop.run(drives.fill("k4", str(image), True, None))
    swaps = [each["body"] for each in rig.journal if each["call"].startswith("PATCH")]
    assert swaps == [
        bodies.swap("ro0", "k1").body,
        bodies.swap("ro1", "k2").body,
        bodies.swap("rw0", "k3").body,
        bodies.swap("ro0", bodies.EMPTY).body,
        bodies.swap("ro0", "k4").body,
    ]


def test_frames_of_the_guest_s_card_reach_the_pod_s_wire(
    rig: Rig, hardware: str, pod: Namespace, agent_of: Callable[[Rig], AgentClient]
) -> None:
    pod.ip("address", "add", "10.77.0.2/24", "dev", "eth0")
    record = Record()
    plumbed = plumb(pod.path, "sandbox", record, 1, 0)
    (card,) = plumbed.interfaces
    try:
        nic = Nic(card.name, card.mac, card.mtu, (), card.tap)
        rig.boot(rig.stand_in(STANDIN_HARDWARE=hardware), netns=pod.path, machine=guest(nics=(nic,)))
        client = agent_of(rig)
        made = call(rig, client, "network", plumbed.to_wire())["interfaces"]
        assert [(each["name"], each["mac"]) for each in made] == [("eth0", card.mac)]
        beyond = next(name for name in os.listdir("/run/netns") if name.endswith("beyond"))
        subprocess.run(["ip", "-n", beyond, "address", "add", "10.77.0.1/24", "dev", "other"], check=True)
        subprocess.run(["ip", "-n", beyond, "link", "set", "other", "up"], check=True)
        ping = ["ip", "netns", "exec", beyond, "python3", "-c", _PING]
        subprocess.run(ping, check=True, timeout=60)
        rig.end()
    finally:
        unplumb(pod.path, record)


_PING = """
import socket, time
# a port that nobody listens on: the guest's kernel says so, so frames go both ways
for _ in range(100):
    with socket.socket() as sock:
        sock.settimeout(2)
        try:
            sock.connect(("10.77.0.2", 9))
        except ConnectionRefusedError:
            raise SystemExit(0)
        except OSError:
            time.sleep(0.1)
raise SystemExit("nobody answers")
"""
