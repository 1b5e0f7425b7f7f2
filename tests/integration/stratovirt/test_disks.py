"""Disks that are plugged into a running machine and taken out again."""

from __future__ import annotations

import time
from typing import Any

import pytest

from kuasar.core.errors import BackendFailed, KuasarError, ResourceExhausted, Unavailable
from tests.integration.stratovirt.rig import Rig
from tests.needs import ROOT

pytestmark = ROOT


def node(rig: Rig, name: str) -> tuple[str, dict[str, object]]:
    path = f"{rig.directory}/{name}.img"
    file = {"driver": "file", "filename": path, "aio": "off"}
    return "blockdev-add", {
        "node-name": name,
        "driver": "raw",
        "read-only": False,
        "cache": {"direct": False},
        "file": file,
    }


def test_a_microvms_disk_is_replaced_and_the_guest_asked(microvm: Rig) -> None:
    microvm.boot(microvm.stand_in())
    microvm.plug("k1")
    assert microvm.journal == [
        node(microvm, "k1"),
        ("device_add", {"id": "k1", "driver": "virtio-blk-mmio", "addr": "0x1"}),
    ]
    assert microvm.asked == [("guest.disk", {"name": "k1", "serial": "vdb", "bytes": 8192})]
    microvm.unplug("k1")
    assert microvm.journal[-1] == ("device_del", {"id": "k1"})
    microvm.plug("k2")  # where the first one was
    assert microvm.asked[-1] == ("guest.disk", {"name": "k2", "serial": "vdb", "bytes": 8192})


def test_a_q35s_port_is_used_again(q35: Rig) -> None:
    q35.boot(q35.stand_in())
    for name in ("k1", "k2", "k3", "k4"):
        q35.plug(name)
        q35.unplug(name)
    ports = [arguments["bus"] for name, arguments in q35.journal if name == "device_add"]
    assert ports == ["port0"] * 4
    assert q35.journal[:4] == [
        node(q35, "k1"),
        (
            "device_add",
            {
                "id": "k1",
                "driver": "virtio-blk-pci",
                "drive": "k1",
                "serial": "k1",
                "bus": "port0",
                "addr": "0x0",
            },
        ),
        ("device_del", {"id": "k1"}),
        ("blockdev-del", {"node-name": "k1"}),
    ]
    assert q35.asked == []


def test_all_places_are_taken(rig: Rig) -> None:
    rig.boot(rig.stand_in())
    count = 3 if rig.kind == "microvm" else 2
    for number in range(count):
        rig.plug(f"k{number}")
    with pytest.raises(ResourceExhausted, match=f"all {count} .* of the machine are taken, one-more has none"):
        rig.plug("one-more")
    rig.unplug("k1")
    rig.plug("one-more")


def test_plugging_and_taking_out_can_be_repeated(rig: Rig) -> None:
    rig.boot(rig.stand_in())
    rig.plug("k1")
    calls = len(rig.journal)
    rig.plug("k1")
    assert len(rig.journal) == calls
    rig.unplug("k1")
    calls = len(rig.journal)
    rig.unplug("k1")
    rig.unplug("never-there")
    assert len(rig.journal) == calls


def test_a_successor_knows_what_is_there(rig: Rig) -> None:
    rig.boot(rig.stand_in())
    rig.plug("k1")
    rig.loop.run(rig.machine.reconnect(time.monotonic() + 60.0))
    rig.devices = rig.make_devices()
    calls = len(rig.journal)
    rig.plug("k1")
    assert len(rig.journal) == calls
    rig.unplug("k1")
    assert rig.host.machine["disks"] == {}


def test_a_successor_finishes_what_was_begun(rig: Rig) -> None:
    """The worker died after the node was made, and again after the disk was there."""
    rig.boot(rig.stand_in())
    rig.plug("k1")
    place = rig.host.machine["disks"]["k1"][0]
    for is_there in (False, False):
        rig.host.remember(disks={"k1": (place, is_there)})
        rig.plug("k1")
        assert rig.host.machine["disks"] == {"k1": (place, True)}
    rig.unplug("k1")
    name, arguments = node(rig, "k1")
    rig.execute(name, **arguments)
    rig.host.remember(disks={"k1": (place, False)})
    rig.plug("k1")
    assert rig.host.machine["disks"] == {"k1": (place, True)}


@pytest.mark.parametrize("call", ["blockdev-add", "device_add"])
def test_a_refusal_leaves_nothing(rig: Rig, call: str) -> None:
    rig.boot(rig.stand_in({call: "fail"}))
    with pytest.raises(BackendFailed, match=f"QMP {call}: told to fail by the test"):
        rig.plug("k1")
    assert rig.host.machine["disks"] == {}


@pytest.mark.parametrize("call", ["blockdev-add", "device_add"])
@pytest.mark.parametrize("fault", ["die", "garble", "truncate"])
def test_a_machine_that_dies_meanwhile(rig: Rig, call: str, fault: str) -> None:
    rig.boot(rig.stand_in({call: fault}))
    with pytest.raises(Unavailable, match="StratoVirt is gone"):
        rig.plug("k1")


@pytest.mark.parametrize("fault", ["die", "garble"])
def test_a_machine_that_dies_while_a_disk_is_taken_out(rig: Rig, fault: str) -> None:
    rig.boot(rig.stand_in({"device_del": fault}))
    rig.plug("k1")
    with pytest.raises(Unavailable, match="StratoVirt is gone"):
        rig.unplug("k1")
    assert "k1" in rig.host.machine["disks"]  # its name is kept: who frees the sandbox knows


def test_a_guest_that_does_not_let_go(q35: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kuasar.backends.stratovirt.devices._UNPLUG_SECONDS", 0.2)
    q35.boot(q35.stand_in({"device_del": "ignore"}))
    q35.plug("k1")
    with pytest.raises(BackendFailed, match="the guest does not let go of disk k1"):
        q35.unplug("k1")
    assert "k1" in q35.host.machine["disks"]


def test_a_guest_whose_kernel_does_not_notice(microvm: Rig) -> None:
    async def refuse(*_: object) -> Any:
        raise BackendFailed("bytes: disk vdb has 0 bytes, not 8192")

    microvm.ask = refuse
    microvm.boot(microvm.stand_in())
    with pytest.raises(BackendFailed, match="disk vdb has 0 bytes"):
        microvm.plug("k1")
    assert microvm.journal[-1] == ("device_del", {"id": "k1"})
    assert microvm.host.machine["disks"] == {}


def test_the_reason_of_a_disk_that_cannot_be_opened(rig: Rig) -> None:
    rig.boot(rig.stand_in())
    with pytest.raises(KuasarError, match="Failed to get metadata of file /none: No such file or directory"):
        rig.loop.run(rig.devices.plug("k1", "/none", False, time.monotonic() + 60.0))


def test_a_removal_that_an_earlier_worker_has_asked_for(q35: Rig) -> None:
    """The guest lets go of the disk while nobody listens, or while the successor is asking again."""
    q35.boot(q35.stand_in())
    q35.plug("k1")
    q35.execute("device_del", id="k1")
    q35.unplug("k1")
    q35.plug("k2")
    assert [arguments["bus"] for name, arguments in q35.journal if name == "device_add"] == ["port0", "port0"]
