"""The true Cloud Hypervisor (``KUASAR_REAL_CLH=path``): what the stand-in is believed to do as it does.

Without a usable KVM no guest ever says a word, but the VMM does all that it is asked: everything here but the last test
holds there, too.
"""

from __future__ import annotations

import os
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kuasar.backends.base import ROOT as ROOT_USER
from kuasar.backends.base import Nic, User
from kuasar.backends.cloud_hypervisor import bodies
from kuasar.backends.cloud_hypervisor.devices import Devices
from kuasar.backends.cloud_hypervisor.events import Event
from kuasar.backends.cloud_hypervisor.machine import VSOCK_SOCKET
from kuasar.backends.cloud_hypervisor.state import MEMORY, State
from kuasar.backends.cloud_hypervisor.template import guest_of
from kuasar.backends.sizes import Size
from kuasar.backends.sockets import listen
from kuasar.core.errors import BackendFailed, KuasarError
from kuasar.core.taps import close_all, open_tap
from tests.deadline import eventually
from tests.integration.cloud_hypervisor.rig import SECONDS, USER, Rig, directory_for_all
from tests.integration.net.wires import Namespace
from tests.needs import IMAGE, ROOT

BINARY = os.environ.get("KUASAR_REAL_CLH", "")
KVM = os.access("/dev/kvm", os.R_OK | os.W_OK)
VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
pytestmark = [
    pytest.mark.real_engine,
    ROOT,
    IMAGE,
    pytest.mark.skipif(not BINARY, reason="KUASAR_REAL_CLH does not name a Cloud Hypervisor"),
    pytest.mark.skipif(not KVM, reason="/dev/kvm cannot be opened: no machine is made"),
]


def somebody() -> User:
    """As whom a VMM runs on a node, where the group of /dev/kvm may use it."""
    found = os.stat("/dev/kvm")
    if found.st_mode & (stat.S_IRGRP | stat.S_IWGRP) == stat.S_IRGRP | stat.S_IWGRP:
        return User(USER.uid, USER.gid, (found.st_gid,))
    return ROOT_USER


@pytest.fixture
def rig() -> Iterator[Rig]:
    with directory_for_all() as directory:
        made = Rig(directory, binary=BINARY, user=somebody())
        yield made
        made.close()


def deadline() -> float:
    return time.monotonic() + SECONDS


def test_a_machine_boots_from_what_it_inherits(rig: Rig) -> None:
    rig.boot()
    rig.loop.run(rig.machine.reconnect(deadline()))
    info = rig.loop.run(rig.machine.api.get("vm.info"))
    assert info["state"] == "Running"
    assert {"root", "vsock"} <= info["device_tree"].keys()
    assert Path(rig.machine.jail.directory, VSOCK_SOCKET).is_socket()
    eventually(lambda: Event("vm", "booted") in rig.machine.events.read(), "the event monitor tells")


def test_nothing_goes_before_its_machine(rig: Rig) -> None:
    rig.boot()
    with pytest.raises(BackendFailed, match=r"vm\.create: .*already created \(HTTP \d+\)"):
        rig.put("vm.create", bodies.create(guest_of(rig.setup(), rig.settings)))
    rig.put("vm.shutdown")
    with pytest.raises(BackendFailed, match=r"vm\.pause: Error from API: .* \(HTTP \d+\)"):
        rig.put("vm.pause")


def test_disks_are_plugged_in_once(rig: Rig) -> None:
    rig.boot()
    image = rig.directory / "image"
    image.write_bytes(bytes(1 << 20))
    devices = Devices(rig.loop, rig.machine)
    for read_only, name in ((True, "k1"), (False, "k2"), (True, "k1")):
        rig.loop.run(devices.plug_disk(name, str(image), read_only, deadline()))
    tree = rig.loop.run(rig.machine.api.get("vm.info"))["device_tree"]
    assert {"k1", "k2"} <= tree.keys()
    rig.put("vm.remove-device", bodies.remove("k1"))  # a guest that runs would let go of it
    with pytest.raises(BackendFailed, match="Failed to find device corresponding to the given identifier: k9"):
        rig.put("vm.remove-device", bodies.remove("k9"))
    with pytest.raises(BackendFailed, match=r"Cannot open disk path: .*path=/none .*: No such file"):
        rig.put("vm.add-disk", bodies.disk("k3", "/none", read_only=True))


def test_a_card_on_a_tap_that_comes_beside_the_request(rig: Rig) -> None:
    outside = Namespace("outside")
    taps = outside.call(lambda: open_tap("ktap", 2))
    try:
        rig.boot()
        devices = Devices(rig.loop, rig.machine)
        nic = Nic("eth0", "02:00:00:00:00:07", 1400, (taps[0],))
        for _ in range(2):
            rig.loop.run(devices.plug_nic("nic0", nic, deadline()))
        with pytest.raises(BackendFailed, match=r"Queue count \(4\) must not exceed boot vCPUs \(1\)"):
            rig.loop.run(devices.plug_nic("nic1", replace(nic, taps=tuple(taps)), deadline()))
        assert "nic0" in rig.loop.run(rig.machine.api.get("vm.info"))["device_tree"]
    finally:
        rig.end()
        close_all(taps)
        outside.remove()


@pytest.mark.skipif(not os.path.exists(VIRTIOFSD), reason="virtiofsd is not installed")
def test_a_share_of_the_true_virtiofsd(rig: Rig) -> None:
    rig.boot()
    shared = rig.directory / "shared"
    shared.mkdir()
    with listen(rig.machine.jail.directory, "virtiofsd.sock", rig.user.uid) as listener:
        argv = [VIRTIOFSD, f"--fd={listener.fileno()}", "-o", f"source={shared},sandbox=namespace"]
        process = subprocess.Popen(argv, pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL)
    try:
        rig.loop.run(Devices(rig.loop, rig.machine).plug_share("share", deadline()))
        assert "share" in rig.loop.run(rig.machine.api.get("vm.info"))["device_tree"]
        rig.end()
        process.wait(SECONDS)
    finally:
        process.kill()
        process.wait()


def test_a_machine_grows(rig: Rig) -> None:
    rig.boot()
    rig.loop.run(Devices(rig.loop, rig.machine).resize(Size(2, 256 << 20), deadline()))
    eventually(lambda: rig.machine.events.read()[-1] == Event("vm", "resized"), "the event monitor tells")
    with pytest.raises(BackendFailed, match=r"vm\.resize: .*\(HTTP \d+\)"):
        rig.loop.run(Devices(rig.loop, rig.machine).resize(Size(99, 256 << 20), deadline()))


def test_it_pauses_hears_the_power_button_and_quits(rig: Rig) -> None:
    rig.boot()
    rig.put("vm.pause")
    with pytest.raises(BackendFailed):
        rig.put("vm.pause")
    assert rig.loop.run(rig.machine.api.get("vm.info"))["state"] == "Paused"
    rig.put("vm.resume")
    rig.put("vm.power-button")
    rig.loop.run(rig.machine.quit())
    assert rig.loop.run(rig.process.ended_by(deadline()))
    assert rig.machine.events.read()[-1] == Event("vmm", "shutdown")


def test_a_saved_machine_goes_on_elsewhere(rig: Rig) -> None:
    raw = rig.directory / "raw"
    raw.mkdir()
    os.chown(raw, rig.user.uid, rig.user.gid)
    directory = os.open(raw, os.O_RDONLY | os.O_DIRECTORY)
    try:
        setup = rig.boot(template=directory)
    finally:
        os.close(directory)
    rig.put("vm.pause")
    try:
        rig.put("vm.snapshot", bodies.snapshot(bodies.path_of(bodies.Descriptors.in_order().template)))
    except KuasarError as exc:
        if "GetNestedState" in exc.message:
            pytest.skip(f"this host's KVM cannot tell the state of a processor: {exc.message}")
        raise
    rig.end()
    state = State.unpack(State.read(str(raw)).pack())
    memory = os.open(raw / MEMORY, os.O_RDONLY)
    try:
        restore = rig.machine.restore(setup, guest_of(setup, rig.settings), (state, memory), rig.placement, deadline())
        rig.loop.run(restore)
    finally:
        os.close(memory)
    assert rig.loop.run(rig.machine.api.get("vm.info"))["state"] == "Running"


def test_the_guest_answers_and_ends_the_machine(rig: Rig) -> None:
    rig.boot()
    try:
        client = rig.loop.run(rig.machine.open_channel(time.monotonic() + 20.0))
    except KuasarError:
        pytest.skip("no guest comes up with this host's KVM")
    rig.call(client, "shutdown", {"grace": 0})
    client.close()
    assert rig.loop.run(rig.process.ended_by(deadline()))
