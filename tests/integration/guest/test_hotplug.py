"""Processors and memory that come while the guest runs."""

from __future__ import annotations

import time

import pytest

from tests.integration.guest.conftest import needs_qemu
from tests.integration.guest.machine import AgentConnection, Machine

pytestmark = needs_qemu

MIB = 1 << 20


def test_a_processor_is_put_to_use(machine: Machine, agent: AgentConnection) -> None:
    assert agent.call("guest.online")["cpus"] == 1
    free = next(each for each in machine.qmp.call("query-hotpluggable-cpus") if "qom-path" not in each)
    machine.qmp.call("device_add", driver=free["type"], id="cpu", **free["props"])
    assert agent.call("guest.online", {"cpus": 2})["cpus"] == 2


def test_memory_is_put_to_use(machine: Machine, agent: AgentConnection) -> None:
    before = agent.call("guest.online")["memory_bytes"]
    backend = {"qom-type": "memory-backend-memfd", "id": "more", "size": 128 * MIB, "share": True}
    machine.qmp.call("object-add", **backend)
    machine.qmp.call("device_add", driver="pc-dimm", id="dimm", memdev="more")
    wanted = before + 120 * MIB
    assert agent.call("guest.online", {"memory_bytes": wanted})["memory_bytes"] >= wanted


def test_what_does_not_come_is_told(agent: AgentConnection) -> None:
    error = agent.ask("guest.online", {"cpus": 99}, timeout=0.5).error
    assert error is not None
    assert error["kind"] == "deadline_exceeded"
    assert "processors of 99" in error["message"]


def test_a_wrong_number_is_refused_by_name(agent: AgentConnection) -> None:
    for field, value in (("cpus", -1), ("memory_bytes", "much")):
        error = agent.ask("guest.online", {field: value}).error
        assert error is not None
        assert error["data"]["field"] == field


def test_a_network_interface_is_seen_in_the_proof_of_identity(machine: Machine, agent: AgentConnection) -> None:
    mac = "52:54:00:12:34:56"
    machine.qmp.call("netdev_add", type="hubport", id="net", hubid=0)
    machine.qmp.call("device_add", driver="virtio-net-pci", id="nic", netdev="net", mac=mac, bus="p0")
    named = {"time_ns": time.time_ns(), "entropy": bytes(64), "machine_id": "a" * 32, "hostname": "guest"}
    while mac not in agent.call("guest.identity", named)["macs"]:
        pass
    machine.qmp.unplug("nic")
    machine.qmp.call("netdev_del", id="net")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("time_ns", 0),
        ("time_ns", "now"),
        ("entropy", b"few"),
        ("entropy", "text"),
        ("machine_id", "0" * 32),
        ("machine_id", "A" * 32),
        ("hostname", ""),
        ("hostname", "x" * 65),
    ],
)
def test_a_wrong_identity_is_refused_by_name_and_changes_nothing(
    agent: AgentConnection, field: str, value: object
) -> None:
    right = {"time_ns": time.time_ns(), "entropy": bytes(64), "machine_id": "b" * 32, "hostname": "other"}
    error = agent.ask("guest.identity", {**right, field: value}).error
    assert error is not None
    assert (error["kind"], error["data"]["field"]) == ("invalid_argument", field)
