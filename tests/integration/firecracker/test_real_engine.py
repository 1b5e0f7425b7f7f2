"""The true Firecracker (``KUASAR_REAL_FIRECRACKER=path``): what the stand-in is believed to do as it does.

Without a usable KVM no guest ever says a word, but the VMM does all that it is asked: everything here but the last test
holds there, too.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kuasar.backends.base import Nic
from kuasar.backends.firecracker import bodies
from kuasar.backends.firecracker.facts import find_program
from kuasar.backends.firecracker.template import MAC, TAP
from kuasar.backends.probing import ProbeHost
from kuasar.core.errors import BackendFailed, KuasarError
from kuasar.core.spawn import Children
from tests.integration.firecracker.rig import REFUSALS, SOMEBODY, Rig, guest
from tests.integration.net.wires import Namespace, Record, plumb, unplumb
from tests.needs import GUEST_IMAGE, IMAGE, ROOT

BINARY = os.environ.get("KUASAR_REAL_FIRECRACKER", "")
KVM = os.access("/dev/kvm", os.R_OK | os.W_OK)
pytestmark = [
    pytest.mark.real_engine,
    ROOT,
    IMAGE,
    pytest.mark.skipif(not BINARY, reason="KUASAR_REAL_FIRECRACKER does not name a Firecracker"),
]
needs_kvm = pytest.mark.skipif(not KVM, reason="/dev/kvm cannot be opened: no machine starts")


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    """As whom a VMM runs on a node."""
    made = make_rig(SOMEBODY)
    made.image = str(GUEST_IMAGE)
    return made


@contextmanager
def plumbed(pod: Namespace) -> Iterator[Nic]:
    """A card of the pod whose tap is the VMM's to open."""
    record = Record()
    (card,) = plumb(pod.path, "sandbox", record, 1, SOMEBODY.uid).interfaces
    try:
        yield Nic(card.name, card.mac, card.mtu, (), card.tap)
    finally:
        unplumb(pod.path, record)


def test_its_version_will_do(rig: Rig) -> None:
    children = Children(rig.loop)
    try:
        found = rig.loop.run(find_program(ProbeHost(children), BINARY, time.monotonic() + 60.0))
    finally:
        children.close()
    assert found.binary == BINARY
    assert tuple(map(int, found.version.split("-")[0].split("."))) >= (1, 12)


def test_without_kvm_its_words_are_told(rig: Rig) -> None:
    """Its user may not open /dev/kvm here, where udev has not been."""
    if os.stat("/dev/kvm").st_mode & 0o006:
        pytest.skip("everybody may use /dev/kvm")
    with pytest.raises(BackendFailed, match=r"Firecracker's actions: .*[Kk]vm error: .*Permission denied.*HTTP 400"):
        rig.boot(BINARY)


@needs_kvm
@pytest.mark.usefixtures("devices_for_all")
def test_a_machine_is_made_and_its_drives_are_exchanged(rig: Rig, pod: Namespace, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"x" * (1 << 20))
    image.chmod(0o600)
    with plumbed(pod) as nic:
        rig.boot(BINARY, netns=pod.path, machine=guest(nics=(nic,), vcpus=2))
        assert rig.state == "Running"
        assert "LOWER_UP" in pod.ip("link", "show", nic.tap)
        for drive, read_only in (("rw0", False), ("ro1", True)):
            rig.fill(drive, image, read_only=read_only)
            assert _path_of(rig, drive) == "k1"
            rig.do(bodies.swap(drive, bodies.EMPTY))
            assert _path_of(rig, drive) == bodies.EMPTY
        rig.do(bodies.pause())
        assert rig.state == "Paused"
        rig.do(bodies.resume())
        assert rig.state == "Running"
        rig.loop.run(rig.machine.reconnect(time.monotonic() + 60.0))
        rig.end()
    assert not rig.jail.exists()


def _path_of(rig: Rig, drive: str) -> str:
    drives = rig.loop.run(rig.machine.api.get("vm/config"))["drives"]
    return next(str(each["path_on_host"]) for each in drives if each["drive_id"] == drive)


@needs_kvm
@pytest.mark.usefixtures("devices_for_all")
@pytest.mark.parametrize(("request_", "words"), REFUSALS)
def test_what_it_refuses_is_told_in_its_words(rig: Rig, request_: bodies.Request, words: str) -> None:
    rig.boot(BINARY)
    with pytest.raises(BackendFailed, match=words):
        rig.do(request_)


@needs_kvm
@pytest.mark.usefixtures("devices_for_all")
def test_a_machine_with_as_many_devices_as_there_can_be(rig: Rig) -> None:
    read_only, writable = bodies.split_drives(96, 0)
    rig.boot(BINARY, machine=guest(read_only_drives=read_only, writable_drives=writable))
    assert rig.state == "Running"


@needs_kvm
@pytest.mark.usefixtures("devices_for_all")
def test_a_snapshot_goes_on_elsewhere(make_rig: Callable[..., Rig], pod: Namespace) -> None:
    """In another directory, with another tap, though the state names the paths of the first one."""
    first, second = make_rig(SOMEBODY), make_rig(SOMEBODY)
    first.image = second.image = str(GUEST_IMAGE)
    template = Namespace("template")
    files = [os.open(first.directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644) for name in ("s", "m")]
    for fd in files:
        os.fchown(fd, SOMEBODY.uid, SOMEBODY.gid)
    try:
        template.ip("tuntap", "add", TAP, "mode", "tap", "user", str(SOMEBODY.uid))
        machine = guest(nics=(Nic("eth0", MAC, 1500, (), TAP),))
        first.boot(BINARY, netns=template.path, machine=machine, files=(files[0], files[1]))
        first.do(bodies.pause())
        first.do(bodies.snapshot())
        first.end()
        with plumbed(pod) as nic:
            second.restore(BINARY, (files[0], files[1]), (nic.tap,), pod.path)
            assert second.state == "Running"
            assert "LOWER_UP" in pod.ip("link", "show", nic.tap)
            assert (second.jail / bodies.VSOCK_SOCKET).exists()
            image = second.directory / "image"
            image.write_bytes(b"x" * 4096)
            second.fill("rw0", image, read_only=False)
            second.end()
    finally:
        for fd in files:
            os.close(fd)
        template.remove()


@needs_kvm
@pytest.mark.usefixtures("devices_for_all")
def test_the_agent_of_its_guest_answers(rig: Rig) -> None:
    """As far as KVM goes: where no guest comes up, nothing is ever on the console."""
    words = json.loads((GUEST_IMAGE / "image.json").read_text())["command_line"]
    line = f"console=ttyS0 reboot=k panic=-1 kuasar.end=reboot {words}"
    rig.boot(BINARY, machine=guest(command_line=line))
    try:
        client = rig.loop.run(rig.machine.open_channel(time.monotonic() + 15.0))
    except KuasarError:
        if not (rig.directory / "console").read_text().strip():
            pytest.skip("KVM does not run a guest on this machine: its console stays empty")
        raise
    rig.loop.run(client.call("shutdown", {"grace": 0.0}, deadline=time.monotonic() + 30.0))
    assert rig.loop.run(rig.process.ended_by(time.monotonic() + 30.0)), "a reset of the guest ends it"
