"""The guest of the stand-ins is the product's own guest on hardware that is not there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kuasar.agent import kernel
from kuasar.core.errors import DeadlineExceeded
from kuasar.core.taps import close_all, open_tap
from tests.integration.net.wires import Namespace
from tests.integration.standins.conftest import SECONDS, Rig
from tests.needs import IMAGE, ROOT
from tests.standins.guest.client import GuestError

pytestmark = [ROOT, IMAGE]
MAC = "02:00:00:00:00:07"
VIRTIOFSD = "/usr/lib/qemu/virtiofsd"


def identity(**changes: object) -> dict[str, object]:
    return {
        "time_ns": time.time_ns(),
        "entropy": os.urandom(64),
        "machine_id": "7" * 32,
        "hostname": "pod",
        **changes,
    }


def test_it_takes_an_identity_and_its_clock_is_its_own(rig: Rig) -> None:
    rig.boot(clock_offset_ns=-3600 * 10**9)
    assert rig.guest.clock_offset_ns() == -3600 * 10**9
    proof = rig.call("guest.identity", identity())
    assert (proof["hostname"], proof["machine_id"]) == ("pod", "7" * 32)
    assert abs(rig.guest.clock_offset_ns()) < SECONDS * 10**9
    rig.call("guest.clock", {"time_ns": time.time_ns() + 7200 * 10**9})
    assert rig.guest.clock_offset_ns() > 7100 * 10**9


def test_the_agent_ends_the_machine(rig: Rig) -> None:
    rig.boot()
    assert rig.guest.connect(1025) is None
    rig.call("shutdown", {"grace": 0})
    assert rig.guest.wait() == "power-off"
    assert "kuasar-guest: end: the agent exited with 0" in rig.console.read_text()


def until_broken(sock: socket.socket) -> None:
    """The agent at the other end is gone, whatever it had to say before."""
    with suppress(ConnectionResetError):
        while sock.recv(4096):
            pass


def test_a_killed_machine_has_nobody_left(rig: Rig) -> None:
    rig.boot()
    with rig.connect() as sock:
        rig.guest.kill()
        assert rig.guest.wait() == "killed"
        until_broken(sock)
    rig.guest.kill()


def test_a_machine_dies_with_its_vmm(rig: Rig) -> None:
    rig.boot()
    with rig.connect() as sock:
        rig.guest.close()
        until_broken(sock)


def test_a_paused_machine_does_nothing(rig: Rig) -> None:
    rig.boot()
    rig.call("info")
    rig.guest.pause()
    with pytest.raises(DeadlineExceeded):
        rig.call("info", seconds=0.3)
    rig.guest.resume()
    rig.call("info")
    rig.guest.pause()  # and a paused one can be killed


def test_it_has_the_size_that_it_was_given(rig: Rig) -> None:
    rig.boot(vcpus=3, memory=256 << 20)
    assert rig.call("guest.online", {"cpus": 3}) == {"cpus": 3, "memory_bytes": 256 << 20}
    rig.guest.resize(5, 512 << 20)
    assert rig.call("guest.online", {"cpus": 5}) == {"cpus": 5, "memory_bytes": 512 << 20}


def test_a_root_disk_that_is_none(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(1 << 20))
    with pytest.raises(GuestError, match="could not be started"):
        rig.boot(tmp_path / "zeros")


# -- devices -----------------------------------------------------------------------------------------------------------


def file_system(path: Path) -> Path:
    with open(path, "wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", str(path)], check=True, timeout=60)
    return path


def plug(rig: Rig, name: str, path: Path, read_only: bool) -> None:
    disk = os.open(path, os.O_RDONLY if read_only else os.O_RDWR)
    try:
        rig.guest.plug_disk(name, disk, read_only)
    finally:
        os.close(disk)


@pytest.mark.parametrize("early", [True, False], ids=["at boot", "hot"])
def test_disks_are_found_by_their_serial_numbers(rig: Rig, tmp_path: Path, early: bool) -> None:
    data, other = file_system(tmp_path / "data"), file_system(tmp_path / "other")
    if early:
        plug(rig, "k1", data, False)
        rig.boot()
    else:
        rig.boot()
        plug(rig, "k1", data, False)
    on_disk = {"destination": "/mnt", "type": "ext4", "source": "disk:k1", "options": ["rw"]}
    assert rig.run("open('/mnt/x', 'w').write('kept')", on_disk) == 0
    rig.guest.unplug("k1")
    plug(rig, "k2", other, False)
    plug(rig, "k1", data, True)
    code = "try: open('/mnt/y', 'w')\nexcept OSError: sys.exit(open('/mnt/x').read() == 'kept' and 3)"
    assert rig.run(code, {**on_disk, "options": ["ro"]}) == 3
    assert rig.run("sys.exit(os.path.exists('/mnt/x'))", {**on_disk, "source": "disk:k2"}) == 0


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Path]:
    """A directory that the real virtiofsd serves, a mount of its own as the product makes it."""
    directory = tmp_path / "shared"
    directory.mkdir()
    kernel.mount(str(directory), str(directory), "", kernel.MS_BIND)
    kernel.mount("", str(directory), "", kernel.MS_SHARED)
    options = f"source={directory},sandbox=namespace,xattr"
    path = tmp_path / "virtiofsd.sock"
    process = subprocess.Popen([VIRTIOFSD, f"--socket-path={path}", "-o", options], stderr=subprocess.DEVNULL)
    while not path.exists():
        assert process.poll() is None
    yield directory
    process.wait(timeout=60)  # it ends with the only connection that it takes
    kernel.umount(str(directory))


@pytest.mark.skipif(not os.path.exists(VIRTIOFSD), reason="virtiofsd is not installed")
def test_the_share_is_what_the_server_shows_now_and_later(rig: Rig, served: Path) -> None:
    (served / "file").write_text("shared")
    (served / "later").mkdir()
    rig.boot()
    rig.guest.plug_share("kuasar", str(served.parent / "virtiofsd.sock"))
    rig.call("guest.share", {"tag": "kuasar"})
    kernel.mount("later", str(served / "later"), "tmpfs")
    try:
        (served / "later" / "file").write_text("mounted")
        mount = {"destination": "/mnt", "type": "bind", "source": "/run/kuasar/shared", "options": ["rbind"]}
        code = "sys.exit([open(f'/mnt/{name}').read() for name in ('file', 'later/file')] == ['shared', 'mounted'])"
        assert rig.run(code, mount) == 1
        assert rig.run("open('/mnt/back', 'w').write('x')", mount) == 0
        assert (served / "back").read_text() == "x"
    finally:
        kernel.umount(str(served / "later"))
    rig.guest.close()


@pytest.mark.parametrize("queues", [1, 2])
def test_frames_go_to_and_fro(rig: Rig, queues: int) -> None:
    outside = Namespace("outside")
    taps = outside.call(lambda: open_tap("ktap", queues))
    try:
        outside.ip("address", "add", "10.77.0.1/24", "dev", "ktap")
        outside.ip("link", "set", "ktap", "up")
        rig.boot()
        rig.guest.plug_nic(MAC, 1400, taps)
        address = {"address": "10.77.0.2", "prefix": 24, "scope": 0}
        card = {"name": "eth7", "mac": MAC, "mtu": 1400, "addresses": [address]}
        found = rig.call("network", {"interfaces": [card], "routes": [], "neighbours": []})
        assert [(each["name"], each["mac"], each["mtu"]) for each in found["interfaces"]] == [("eth7", MAC, 1400)]
        with outside.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("10.77.0.2", 7))
            sock.send(bytes(1300))
            with pytest.raises(ConnectionRefusedError):  # the guest's kernel says that nobody listens there
                sock.recv(1)
        neighbours = json.loads(outside.ip("-j", "neigh", "show", "dev", "ktap"))
        assert MAC in [each.get("lladdr") for each in neighbours]
    finally:
        close_all(taps)
        outside.remove()
