"""A machine that shares nothing with its host: drives whose content is exchanged, copies, a root above an image."""

from __future__ import annotations

import stat
from pathlib import Path

from tests.integration.guest.conftest import needs_qemu
from tests.integration.guest.containers import answer, asking
from tests.integration.guest.machine import AgentConnection, Machine
from tests.integration.guest.test_storage import disk, erofs, mounting

pytestmark = needs_qemu
FILE, DIRECTORY, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777


def test_a_root_above_an_image_is_written_in_memory(machine: Machine, agent: AgentConnection, tmp_path: Path) -> None:
    image = erofs(tmp_path, "image", {"a": "image", "b": "image"})
    with disk(machine, "packed", image, 0, True):
        request = asking("above", '[text("/mnt/a"), open("/mnt/b", "w").write("mine"), text("/mnt/b")]')
        overlay = ["lowerdir={{ mount 0 }}", "upperdir={{ mount 1 }}/upper", "workdir={{ mount 1 }}/work"]
        request["rootfs"] = [
            {"type": "erofs", "source": "disk:packed", "target": "", "options": ["ro"]},
            {"type": "tmpfs", "source": "tmpfs", "target": "", "options": ["mode=0755"]},
            *request["rootfs"],
            {"type": "overlay", "source": "overlay", "target": "/mnt", "options": overlay},
        ]
        assert answer(machine, agent, request) == ["image", 4, "mine"]


def test_a_drive_is_known_by_a_name_of_ours_when_its_size_is_seen(
    machine: Machine, agent: AgentConnection, tmp_path: Path
) -> None:
    content = tmp_path / "content"
    content.write_bytes(b"x" * (1 << 20))
    with disk(machine, "s6502401234", content, 0):
        request = {"name": "k1", "serial": "s6502401234", "bytes": 1 << 20}
        device = agent.call("guest.disk", request)["device"]
        assert device.startswith("/dev/vd")
        wrong = agent.ask("guest.disk", {**request, "bytes": 2 << 20}, timeout=0.3).error
        assert wrong is not None
        assert wrong["message"] == "bytes: disk s6502401234 has 1048576 bytes, not 2097152"
        none = agent.ask("guest.disk", {**request, "serial": "7"}, timeout=0.3).error
        assert none is not None
        assert "serial: the machine has no disk with the serial number 7 (it has: s6502401234, vda)" in none["message"]
        with content.open("r+b") as file:
            file.truncate(2 << 20)
        machine.qmp.call("block_resize", **{"node-name": "s6502401234", "size": 2 << 20})
        assert agent.call("guest.disk", {**request, "bytes": 2 << 20}) == {"device": device}
        assert "k1" not in agent.call("info")["containers"]
        raw = asking("raw", f'os.path.exists("{device}")')
        assert answer(machine, agent, raw) is True


def test_copies_are_bound_into_containers(machine: Machine, agent: AgentConnection) -> None:
    entries = [
        {"path": "", "mode": DIRECTORY},
        {"path": "..2026", "mode": DIRECTORY},
        {"path": "..2026/key", "mode": FILE, "data": b"value"},
        {"path": "..data", "mode": LINK, "link": "..2026"},
        {"path": "key", "mode": LINK, "link": "..data/key"},
    ]
    agent.call("guest.write", {"name": "containers/c/m0", "entries": entries})
    source = {"type": "bind", "source": "/run/kuasar/shared/containers/c/m0", "options": ["rbind", "ro"]}
    request = mounting(asking("reads", '[text("/mnt/key"), open("/mnt/x", "w")]'), **source)
    assert answer(machine, agent, request) == ["EROFS", "/mnt/x"]
    request = mounting(asking("again", 'text("/mnt/key")'), **source)
    assert answer(machine, agent, request) == "value"
    agent.call("guest.remove", {"name": "containers/c"})
    gone = asking("gone", 'os.listdir("/run/kuasar/shared/containers")')
    assert answer(machine, agent, gone) == []


def test_a_card_takes_the_address_that_it_shall_have(machine: Machine, agent: AgentConnection) -> None:
    was, mac = "02:00:00:00:00:01", "0e:00:00:00:00:07"
    machine.qmp.call("netdev_add", type="hubport", id="net", hubid=0)
    machine.qmp.call("device_add", driver="virtio-net-pci", id="card", netdev="net", bus="p0", mac=was)
    try:
        card = {"name": "eth0", "mac": mac, "was": was, "mtu": 1400}
        body = {"interfaces": [card], "routes": [], "neighbours": []}
        for _ in range(2):  # repeating is harmless
            made = agent.call("network", body)["interfaces"]
            assert [(each["name"], each["mac"], each["mtu"]) for each in made] == [("eth0", mac, 1400)]
    finally:
        machine.qmp.unplug("card")
        machine.qmp.call("netdev_del", id="net")
