"""A Cloud Hypervisor as the worker starts it: the stand-in as VMM, unprivileged, our guest behind it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kuasar.backends.base import ROOT as ROOT_USER
from kuasar.backends.base import MachineSpec, Stage
from kuasar.backends.cloud_hypervisor import bodies
from kuasar.backends.cloud_hypervisor.devices import Devices
from kuasar.backends.cloud_hypervisor.engine import Engine
from kuasar.backends.cloud_hypervisor.events import Event
from kuasar.backends.cloud_hypervisor.machine import API_SOCKET, VSOCK_SOCKET
from kuasar.backends.cloud_hypervisor.state import MEMORY, State
from kuasar.backends.cloud_hypervisor.template import guest_of
from kuasar.backends.microvm import ANNOTATION_SHARED_FS
from kuasar.backends.sizes import Size
from kuasar.core.errors import BackendFailed, DeadlineExceeded, KuasarError, Unavailable
from tests.deadline import eventually
from tests.integration.cloud_hypervisor.rig import SECONDS, USER, Rig, directory_for_all, first_process_of_guest
from tests.needs import IMAGE, ROOT

pytestmark = [ROOT, IMAGE]


@pytest.fixture
def deaf() -> Iterator[Rig]:
    """A machine in which nobody ever listens."""
    with directory_for_all() as directory:
        made = Rig(directory)
        yield made
        made.close()


def test_the_agent_of_a_machine_answers_and_its_end_is_the_machine_s(rig: Rig) -> None:
    rig.boot()
    for _ in range(2):  # a successor connects anew
        client = rig.connect()
        assert rig.call(client, "info")["containers"] == []
    rig.loop.run(rig.machine.reconnect(time.monotonic() + SECONDS))
    rig.call(client, "shutdown", {"grace": 0})
    client.close()
    assert rig.loop.run(rig.process.ended_by(time.monotonic() + SECONDS))
    assert "kuasar-guest: end: the agent exited with 0" in (rig.directory / "console").read_text()
    assert rig.machine.events.read()[-1] == Event("vmm", "shutdown")


def test_the_vmm_has_no_rights(rig: Rig) -> None:
    rig.boot()
    status = Path(f"/proc/{rig.process.pid}/status").read_text().splitlines()
    found = {name: value.split() for name, _, value in (line.partition(":") for line in status)}
    assert found["Uid"] == [str(USER.uid)] * 4
    assert found["CapEff"] == ["0" * 16]
    assert found["NoNewPrivs"] == ["1"]


def test_asked_to_quit_it_ends(rig: Rig) -> None:
    rig.boot()
    rig.loop.run(rig.machine.quit())
    assert rig.loop.run(rig.process.ended_by(time.monotonic() + SECONDS))
    rig.loop.run(rig.machine.quit())


def test_devices_are_plugged_in_once_and_out_again(rig: Rig) -> None:
    rig.boot()
    client = rig.connect()
    image = rig.directory / "image"
    image.write_bytes(b"content".ljust(1 << 20, b"\0"))
    image.chmod(0o600)  # root's alone
    devices = Devices(rig.loop, rig.machine)
    for _ in range(2):  # the second time as after an adoption
        rig.loop.run(devices.plug_disk("k1", str(image), False, time.monotonic() + SECONDS))
    found = rig.loop.run(rig.machine.api.get("vm.info"))["device_tree"]
    assert sorted(found) == ["k1", "root", "vsock"]
    for _ in range(2):
        rig.loop.run(devices.unplug("k1"))
    assert not Path(rig.machine.jail.directory, "k1").exists()
    rig.loop.run(devices.resize(Size(2, 256 << 20), time.monotonic() + SECONDS))
    assert rig.call(client, "guest.online", {"cpus": 2, "memory_bytes": 256 << 20})["cpus"] == 2
    with pytest.raises(BackendFailed, match=r"vm\.resize: .*Desired vCPU count exceeds maximum \(HTTP 500\)"):
        rig.loop.run(devices.resize(Size(3, 256 << 20), time.monotonic() + SECONDS))
    client.close()


def test_a_disk_that_the_vmm_refuses_leaves_nothing(rig: Rig) -> None:
    rig.boot({"vm.add-disk": "fail"})
    image = rig.directory / "image"
    image.write_bytes(bytes(1 << 20))
    with pytest.raises(BackendFailed, match="told to fail: by the test"):
        rig.loop.run(Devices(rig.loop, rig.machine).plug_disk("k1", str(image), True, time.monotonic() + SECONDS))
    assert not Path(rig.machine.jail.directory, "k1").exists()


def test_a_guest_that_resets_its_machine_is_told(rig: Rig) -> None:
    """As a kernel does that panics: the VMM would start the machine anew."""
    rig.boot()
    rig.connect().close()
    assert rig.machine.events.read()[-1] == Event("vm", "booted")
    os.kill(first_process_of_guest(), signal.SIGKILL)
    lost = rig.loop.run(rig.loop.wait_for(rig.machine.events.until_lost(), time.monotonic() + SECONDS))
    assert lost == "its guest has reset the machine"


# -- saved machines ----------------------------------------------------------------------------------------------------


def test_a_saved_machine_goes_on_as_another(rig: Rig) -> None:
    raw = rig.directory / "raw"
    raw.mkdir()
    os.chown(raw, USER.uid, USER.gid)
    directory = os.open(raw, os.O_RDONLY | os.O_DIRECTORY)
    try:
        setup = rig.boot(template=directory)
    finally:
        os.close(directory)
    rig.connect().close()
    with pytest.raises(BackendFailed, match=r"The VM is Running \(HTTP 405\)"):
        rig.put("vm.snapshot", bodies.snapshot("/tmp"))
    rig.put("vm.pause")
    rig.put("vm.snapshot", bodies.snapshot(bodies.path_of(bodies.Descriptors.in_order().template)))
    rig.end()
    console = (rig.directory / "console").read_text()
    state = State.unpack(State.read(str(raw)).pack())
    memory = os.open(raw / MEMORY, os.O_RDONLY)
    try:
        restore = rig.machine.restore(
            setup, guest_of(setup, rig.settings), (state, memory), rig.placement, time.monotonic() + SECONDS
        )
        rig.loop.run(restore)
    finally:
        os.close(memory)
    client = rig.connect()
    proof = rig.call(
        client,
        "guest.identity",
        {"time_ns": time.time_ns(), "entropy": bytes(64), "machine_id": "7" * 32, "hostname": "clone"},
    )
    assert proof["hostname"] == "clone"
    assert (rig.directory / "console").read_text().startswith(console)
    client.close()
    config = rig.loop.run(rig.machine.api.get("vm.info"))["config"]
    numbers = bodies.Descriptors.in_order()
    assert config["disks"][0]["path"] == bodies.path_of(numbers.root)
    assert config["vsock"]["socket"] == VSOCK_SOCKET


def test_a_template_that_is_cut_is_refused(rig: Rig) -> None:
    setup = rig.setup()
    guest = guest_of(setup, rig.settings)
    config = {**bodies.create(guest), "disks": [bodies.disk("root", "/old", read_only=True)]}
    memory = os.memfd_create("memory")
    restore = rig.machine.restore(
        setup, guest, (State(config, '{"devices": []}'), memory), rig.placement, time.monotonic() + SECONDS
    )
    try:
        with pytest.raises(BackendFailed, match=r"vm\.restore: .*failed to fill whole buffer"):
            rig.loop.run(restore)
    finally:
        os.close(memory)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_guest_that_never_listens_costs_the_deadline(deaf: Rig) -> None:
    deaf.boot()
    with pytest.raises((Unavailable, DeadlineExceeded), match="vsock port 1024"):
        deaf.loop.run(deaf.machine.open_channel(time.monotonic() + 0.3))


@pytest.mark.parametrize("endpoint", ["vm.create", "vm.boot"])
@pytest.mark.parametrize(
    "fault, error, words", [("fail", BackendFailed, "told to fail: by the test"), ("die", Unavailable, "connection")]
)
def test_a_start_that_fails_leaves_nothing(
    deaf: Rig, endpoint: str, fault: str, error: type[KuasarError], words: str
) -> None:
    with pytest.raises(error, match=words):
        deaf.boot({endpoint: fault})
    deaf.end()
    assert not {API_SOCKET, "vmm", "events"} & set(os.listdir(deaf.directory))


def test_a_file_that_the_vmm_cannot_open_is_named(rig: Rig) -> None:
    """The disk of the guest is nobody's to read but root's."""
    setup = rig.setup()
    secret = rig.directory / "root"
    secret.write_bytes(bytes(4096))
    secret.chmod(0o600)
    wrong = replace(setup, root=str(secret))
    boot = rig.machine.boot(wrong, guest_of(wrong, rig.settings), rig.placement, time.monotonic() + SECONDS)
    with pytest.raises(BackendFailed, match=r"Cannot open /proc/self/fd/6: Permission denied \(HTTP 500\)"):
        rig.loop.run(boot)


def test_a_vmm_that_is_root_s_may_do_it(rig: Rig) -> None:
    with directory_for_all() as directory:
        as_root = Rig(directory, user=ROOT_USER)
        as_root.boot()
        eventually((directory / "vmm" / VSOCK_SOCKET).exists, "the vsock's socket")
        as_root.close()


def test_without_an_agent_the_power_button_comes_first(deaf: Rig) -> None:
    """Our guest does not listen to it: then the VMM is asked, and killed at last."""
    journal = deaf.directory / "journal"
    journal.touch()
    journal.chmod(0o666)
    settings = replace(deaf.settings, binary=deaf.stand_in(STANDIN_JOURNAL=str(journal)), template=False)
    engine = Engine(deaf.host, settings)
    spec = MachineSpec(
        sandbox_id="pod1",
        hostname="pod1",
        netns="",
        cgroup="",
        host_pid=False,
        host_ipc=False,
        log_path=str(deaf.directory / "log"),
        console_path=str(deaf.directory / "console"),
        annotations={ANNOTATION_SHARED_FS: "none"},
    )
    try:
        deaf.loop.run(engine.launch(spec, time.monotonic() + SECONDS))
        assert deaf.loop.run(engine.stop(0.2, None)) is Stage.KILLED
        asked = [json.loads(line)["call"] for line in journal.read_text().splitlines()]
        assert asked == ["PUT vm.create", "PUT vm.boot", "PUT vm.power-button", "PUT vmm.shutdown"]
        assert deaf.loop.run(engine.stop(0.2, None)) is Stage.GONE
    finally:
        deaf.loop.run(engine.vmm.kill(time.monotonic() + SECONDS))
        deaf.loop.run(engine.release())


def test_asking_what_is_gone_to_quit_is_harmless(deaf: Rig) -> None:
    deaf.loop.run(deaf.machine.quit())
