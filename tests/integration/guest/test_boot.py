"""Real boots of the real image, the real agent as PID 1."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from guest import manifest
from guest.pid1 import serial
from tests.integration.guest.conftest import Built, needs_qemu
from tests.integration.guest.containers import container, run_to_end
from tests.integration.guest.machine import Machine, start_machine

pytestmark = needs_qemu

# Runs in a container of the guest, says on the machine's console what it sees of it.
REPORT = """
import json, os, socket, sys
sys.stderr = open("/dev/console", "w")
def text(path):
    with open(path) as file:
        return file.read()
status = dict(line.split(":", 1) for line in text("/proc/1/status").splitlines())
mounts = {line.split()[1]: line.split()[2] for line in text("/proc/1/mounts").splitlines()}
for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    with socket.socket(family) as server, socket.socket(family) as client:
        server.bind((address, 0))
        server.listen()
        client.connect(server.getsockname()[:2])
        with server.accept()[0] as accepted:
            assert accepted.getpeername() == client.getsockname()
def private(pid):
    lines = text(f"/proc/{pid}/smaps_rollup").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private"))
processes = [n for n in os.listdir("/proc") if n.isdigit()]
report = {
    "uname": os.uname().release,
    "rss": int(status["VmRSS"].split()[0]) * 1024,
    "names": [text(f"/proc/{n}/comm").strip() for n in processes],
    "private": private(1),
    "mounts": mounts,
    "modules": sorted(line.split()[0] for line in text("/proc/modules").splitlines()),
    "memory": {line.split(":")[0]: int(line.split()[1]) * 1024 for line in text("/proc/meminfo").splitlines()},
    "writable": os.access("/usr", os.W_OK),
    "cgroup": text("/proc/self/cgroup").strip(),
    "controllers": text("/sys/fs/cgroup/cgroup.subtree_control").split(),
}
fd = os.open("/dev/console", os.O_WRONLY | os.O_NOCTTY)
os.write(fd, ("\\nREPORT " + json.dumps(report) + " END\\n").encode())
raise SystemExit(42)
"""


def test_the_agent_is_the_first_process_of_a_prepared_machine(machine: Machine, built: Built) -> None:
    with machine.connect() as connection:
        assert (connection.hello.pid, connection.hello.driver) == (1, "oci")
        assert run_to_end(connection, container("report", REPORT)) == 42
    report = json.loads(machine.console.partition("REPORT ")[2].partition(" END")[0])
    print(json.dumps(report["memory"]), report["rss"], report["private"])
    assert report["uname"] == built.image.kernel_release
    assert "modprobe" not in report["names"]
    kinds = {"/": "erofs", "/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs", "/dev/pts": "devpts", "/run": "tmpfs"}
    kinds |= {"/sys/fs/cgroup": "cgroup2", "/dev/shm": "tmpfs", "/tmp": "tmpfs", "/dev/mqueue": "mqueue"}
    assert {path: report["mounts"].get(path) for path in kinds} == kinds
    assert not report["writable"]
    assert {"cpu", "memory", "pids", "io", "cpuset"} <= set(report["controllers"])
    assert report["cgroup"] == "0::/kuasar/report"
    assert {"virtio_net", "virtiofs", "overlay", "vmw_vsock_virtio_transport"} <= set(report["modules"])
    assert report["rss"] <= 12 * 2**20
    assert report["memory"]["MemAvailable"] >= 60 * 2**20


def test_a_new_connection_replaces_the_old_one_and_starts_clean(machine: Machine) -> None:
    with machine.connect() as first:
        # Half of a frame is under way when its worker dies: the next one must not be taken for the rest of it.
        first.stream.sendall((1000).to_bytes(4, "big") + b"half of a frame")
    with machine.connect() as second:
        assert second.hello.instance == first.hello.instance
        assert second.call("info")["containers"] == []


def test_openings_on_one_open_port_start_new_connections(machine: Machine) -> None:
    with machine.connect() as connection:
        nonce = b"n" * serial.NONCE_BYTES
        opening = serial.OPEN + nonce
        for part in (opening[:5], opening[5:20], opening[20:]):
            connection.stream.sendall(part)
        # The first part alone is garbage to the agent, and it may have had the time to say so.
        connection.read_until(serial.READY + nonce)
        assert connection.expect_hello().instance == connection.hello.instance
        assert connection.call("info")["containers"] == []


def test_a_broken_frame_ends_the_connection_and_nothing_else(machine: Machine) -> None:
    with machine.connect() as connection:
        connection.stream.sendall(b"\xff\xff\xff\xff")
        connection.read_until(serial.CLOSED + connection.nonce)
    with machine.connect():
        pass


def test_a_large_frame_passes_in_both_directions(machine: Machine) -> None:
    with machine.connect() as connection:
        ballast = "x" * (1 << 20)
        connection.call("task.create", container("large", "pass") | {"bundle": ballast})
        assert connection.call("task.state", {"id": "large"})["bundle"] == ballast
        connection.call("task.delete", {"id": "large"})


def boot_to_the_end(built: Built, root_disk: Path | None, **options: Any) -> str:
    """The console of a boot that ends by itself."""
    with start_machine(built.image, built.directory, root_disk, can_grow=False, **options) as machine:
        assert machine.wait() == 0
        return machine.console


def test_a_truncated_root_disk_is_named(built: Built, tmp_path: Path) -> None:
    disk = tmp_path / "root.erofs"
    disk.write_bytes(built.root_disk.read_bytes()[: 8 << 20])
    console = boot_to_the_end(built, disk)
    sectors = built.image.files[manifest.ROOT_DISK].bytes // 512
    assert f"kuasar-guest: end: the root disk /dev/vda is truncated: {(8 << 20) // 512} sectors of {sectors}" in console
    assert "panic" not in console


def test_a_disk_that_is_no_image_is_named(built: Built, tmp_path: Path) -> None:
    disk = tmp_path / "root.erofs"
    with open(disk, "wb") as file:
        file.truncate(built.root_disk.stat().st_size)
    assert "kuasar-guest: end: cannot mount the root disk /dev/vda as erofs" in boot_to_the_end(built, disk)


def test_a_machine_without_its_disk_says_so(built: Built) -> None:
    assert "kuasar-guest: end: the machine has no root disk /dev/vda" in boot_to_the_end(built, None)


def test_a_machine_without_a_channel_says_so(built: Built) -> None:
    console = boot_to_the_end(built, built.root_disk, port=False)
    assert "end: FileNotFoundError: the machine has neither a vsock device nor a serial port named" in console


def test_the_plain_kernel_of_the_package_boots_as_well(built: Built) -> None:
    """Bring-your-own: a VMM that wants a bzImage gets the one of the package."""
    work = Path(__file__).parents[3] / ".kuasar" / "guest" / "unpacked" / "boot"
    copy = built.directory / "bz"
    copy.mkdir()
    shutil.copy(built.directory / manifest.INITRD, copy)
    shutil.copy(next(work.glob("vmlinuz-*")), copy / manifest.KERNEL)
    with start_machine(built.image, copy, built.root_disk, can_grow=False) as machine, machine.connect() as connection:
        assert connection.hello.pid == 1
    shutil.rmtree(copy)
