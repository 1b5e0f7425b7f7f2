"""The machine against the stand-in: its requests, its user, its disks and taps, and all that can go wrong."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kuasar.backends.base import Nic
from kuasar.backends.firecracker import bodies
from kuasar.core.errors import BackendFailed, DeadlineExceeded, KuasarError, Unavailable
from tests.deadline import eventually
from tests.integration.firecracker.rig import REFUSALS, SOMEBODY, Rig, faults, guest
from tests.integration.net.wires import Namespace, Record, plumb, unplumb
from tests.needs import ROOT

pytestmark = ROOT
BOOT = [f"{each.method} /{each.endpoint}" for each in bodies.boot(guest())]


def test_the_requests_of_a_boot(rig: Rig) -> None:
    rig.boot(rig.stand_in())
    assert rig.journal == [
        {"call": f"{each.method} /{each.endpoint}", "body": each.body} for each in bodies.boot(guest())
    ]
    rig.loop.run(rig.machine.reconnect(time.monotonic() + 60.0))


def test_a_vmm_that_may_open_nothing_but_its_own(make_rig: Callable[..., Rig]) -> None:
    """As an unprivileged user: everything that it is given can be opened, in a directory that nobody else enters."""
    rig = make_rig(SOMEBODY)
    rig.boot(rig.stand_in())
    facts = rig.jail.stat()
    assert (facts.st_uid, stat.S_IMODE(facts.st_mode)) == (SOMEBODY.uid, 0o700)
    status = Path(f"/proc/{rig.process.pid}/status").read_text()
    assert f"Uid:\t{SOMEBODY.uid}\t{SOMEBODY.uid}" in status
    assert "NoNewPrivs:\t1" in status
    assert os.readlink(f"/proc/{rig.process.pid}/cwd") == str(rig.jail)
    image = rig.directory / "image"
    image.write_bytes(b"of a snapshotter".ljust(1 << 20, b"\0"))
    image.chmod(0o600)  # root's alone
    rig.fill("rw0", image, read_only=False)
    assert image.stat().st_uid == 0, "nothing of it has changed"
    assert "Running Firecracker" in (rig.directory / "log").read_text()


def test_a_disk_is_the_file_and_ends_with_its_last_user(rig: Rig) -> None:
    image = rig.directory / "image"
    image.write_bytes(b"content".ljust(1 << 20, b"\0"))
    rig.machine.jail.open()
    disk, keeper = rig.machine.jail.add_disk("k1", str(image), read_only=True)
    node = rig.jail / "k1"
    try:
        found = node.stat()
        assert disk.status == found
        assert disk.bytes == 1 << 20
        with node.open("rb") as file:
            assert file.read(7) == b"content"
        with pytest.raises(PermissionError), node.open("r+b", buffering=0) as file:
            file.write(b"changed")
        loop = Path(f"/sys/dev/block/{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}/loop")
        assert loop.exists()
    finally:
        os.close(keeper)
    eventually(lambda: not loop.exists(), "the loop device is free again")
    rig.machine.jail.remove_disk("k1")
    rig.machine.jail.remove_disk("k1")
    assert not node.exists()


def test_a_disk_that_is_not_there_is_named(rig: Rig) -> None:
    rig.machine.jail.open()
    with pytest.raises(BackendFailed, match=r"cannot give /none to the VMM: No such file"):
        rig.machine.jail.add_disk("k1", "/none", read_only=True)


@pytest.mark.usefixtures("devices_for_all")
def test_a_tap_is_opened_by_name_in_the_pod_s_network(make_rig: Callable[..., Rig], pod: Namespace) -> None:
    rig, record = make_rig(SOMEBODY), Record()
    plumbed = plumb(pod.path, "sandbox", record, 4, SOMEBODY.uid)
    (card,) = plumbed.interfaces
    assert card.fds == []
    nic = Nic(card.name, card.mac, card.mtu, (), card.tap)
    try:
        rig.boot(rig.stand_in(), netns=pod.path, machine=guest(nics=(nic,)))
        assert os.readlink(f"/proc/{rig.process.pid}/ns/net") != os.readlink("/proc/self/ns/net")
        assert "LOWER_UP" in pod.ip("link", "show", card.tap), "somebody has it open"
        rig.end()
        assert card.tap in pod.ip("link", "show"), "it outlives the VMM"
    finally:
        unplumb(pod.path, record)
    assert card.tap not in pod.ip("link", "show")


@pytest.mark.usefixtures("devices_for_all")
def test_a_tap_of_somebody_else_is_refused_in_the_vmm_s_words(make_rig: Callable[..., Rig], pod: Namespace) -> None:
    rig, record = make_rig(SOMEBODY), Record()
    plumbed = plumb(pod.path, "sandbox", record, 1, SOMEBODY.uid + 1)
    (card,) = plumbed.interfaces
    try:
        nic = Nic(card.name, card.mac, card.mtu, (), card.tap)
        with pytest.raises(BackendFailed, match=r"network-interfaces/nic0: .*Open tap device failed.*HTTP 400"):
            rig.boot(rig.stand_in(), netns=pod.path, machine=guest(nics=(nic,)))
    finally:
        unplumb(pod.path, record)


FAULTS = [
    ("fail", BackendFailed, r"told to fail by the test \(HTTP 400\)"),
    ("die", Unavailable, "connection"),
    ("garble", Unavailable, "without an answer"),
    ("truncate", Unavailable, "without an answer"),
]


@pytest.mark.parametrize("request_", sorted(set(BOOT)))
@pytest.mark.parametrize(("fault", "error", "words"), FAULTS)
def test_a_start_that_fails_leaves_nothing(
    rig: Rig, request_: str, fault: str, error: type[KuasarError], words: str
) -> None:
    binary = rig.stand_in(STANDIN_FAULTS=f'{{"{request_}": "{fault}"}}')
    endpoint = request_.partition(" /")[2]
    with pytest.raises(error, match=rf"Firecracker's {endpoint}: .*{words}"):
        rig.boot(binary)
    assert rig.journal[-1]["call"] == request_
    rig.end()
    assert not rig.jail.exists()


def test_a_vmm_that_hangs_costs_the_deadline(rig: Rig) -> None:
    with pytest.raises(DeadlineExceeded, match="Firecracker's vsock"):
        rig.boot(rig.stand_in(**faults(put_vsock="hang")), seconds=5.0)


def test_a_socket_that_never_appears_costs_the_deadline(rig: Rig) -> None:
    with pytest.raises(DeadlineExceeded, match="API socket does not appear"):
        rig.boot(rig.stand_in(**faults(start="hang")), seconds=1.0)


def test_a_vmm_that_ends_at_once_is_told(rig: Rig) -> None:
    with pytest.raises(Unavailable, match="Firecracker ended before its API could be reached"):
        rig.boot(rig.stand_in(**faults(start="die")))
    assert "told to die" in (rig.directory / "console").read_text()


def test_a_program_that_is_not_there(rig: Rig) -> None:
    with pytest.raises((BackendFailed, Unavailable)):
        rig.boot("/nonexistent/firecracker", seconds=30.0)


def test_a_guest_that_never_listens_costs_the_deadline(rig: Rig) -> None:
    rig.boot(rig.stand_in())
    with pytest.raises((Unavailable, DeadlineExceeded), match="vsock port 1024"):
        rig.loop.run(rig.machine.open_channel(time.monotonic() + 0.3))


@pytest.mark.parametrize(("request_", "words"), REFUSALS)
def test_what_the_vmm_refuses_is_told_in_its_words(rig: Rig, request_: bodies.Request, words: str) -> None:
    rig.boot(rig.stand_in())
    with pytest.raises(BackendFailed, match=words):
        rig.do(request_)


def test_nothing_that_is_for_later_goes_before_the_start(rig: Rig) -> None:
    binary = rig.stand_in(**faults(put_actions="fail"))
    with pytest.raises(BackendFailed, match="told to fail"):
        rig.boot(binary)
    for request_ in (bodies.pause(), bodies.swap("rw0", "empty"), bodies.snapshot()):
        with pytest.raises(BackendFailed, match="not supported before starting"):
            rig.do(request_)
    with pytest.raises(BackendFailed, match="not allowed after configuring boot-specific resources"):
        rig.do(bodies.restore([]))


def test_pause_and_resume(rig: Rig) -> None:
    rig.boot(rig.stand_in())
    rig.do(bodies.pause())
    assert rig.state == "Paused"
    rig.do(bodies.resume())
    assert rig.state == "Running"
