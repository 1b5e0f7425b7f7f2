"""Pods that are machines: what only they promise, and how they fail."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from kuasar.api.gen.cri.v1.common_pb2 import LinuxContainerResources
from kuasar.api.gen.cri.v1.container_pb2 import Device
from kuasar.cli.cri import CriError, bind
from tests import needs
from tests.deadline import eventually
from tests.e2e.engines import OWN_KERNEL
from tests.e2e.gateway import Gateway
from tests.e2e.harness import Node, Pod
from tests.e2e.stack import HUGE_HANDLER

pytestmark = pytest.mark.needs(OWN_KERNEL)

IDENTITY = "cat /proc/sys/kernel/random/boot_id; cat /sys/class/net/eth0/address; head -c 32 /dev/urandom | md5sum"


def info(pod: Pod) -> dict[str, str]:
    """The verbose status of the sandbox, as our worker says it."""
    with Gateway(pod.stack.layout.gateway_socket) as gateway:
        return dict(gateway.status(pod.id, pod.engine.handler, verbose=True).info)


def test_two_pods_are_two_machines(node: Node) -> None:
    pods = [node.pod(f"machine-{number}") for number in range(2)]
    seen = [pod.run_idle().sh(IDENTITY).split() for pod in pods]
    assert not set(seen[0]) & set(seen[1]) - {"-"}
    facts = [info(pod) for pod in pods]
    assert facts[0]["pid"] != facts[1]["pid"]
    assert all(each["start"].startswith("clone of template ") for each in facts), facts
    kernel = pods[0].run_idle("kernel").sh("uname -r").strip()
    assert kernel != os.uname().release


def test_files_of_one_pod_are_not_seen_by_another(node: Node) -> None:
    first, second = (node.pod(f"files-{number}").run_idle() for number in range(2))
    first.sh("echo secret > /root/mine; sync")
    assert second.exec("cat", "/root/mine").exit_code != 0
    assert second.sh("mount | grep -c virtiofs").strip() != "0"
    assert "secret" not in second.sh("cat /root/* 2>/dev/null; true")


def test_a_fork_bomb_stays_in_its_machine(node: Node) -> None:
    victim, bystander = node.pod("bomb").run_idle("bomb"), node.pod("bystander").run_idle("bystander")
    before = len([name for name in os.listdir("/proc") if name.isdigit()])
    bomb = victim.pod.run(["sh", "-c", "echo lit; f() { f | f & }; f; sleep 3600"], "fork")
    bomb.wait_for_log(b"lit\n")
    assert bystander.exec("echo", "well").stdout == b"well\n"
    assert len([name for name in os.listdir("/proc") if name.isdigit()]) < before + 100
    victim.pod.remove()
    assert bystander.running()


def test_a_panic_of_the_guest_is_told(node: Node) -> None:
    pod = node.pod(privileged=True)
    container = pod.run_idle(privileged=True)
    with suppress(CriError):  # or it is told that the command was killed, whichever comes first
        assert container.exec("sh", "-c", "echo c > /proc/sysrq-trigger; sleep 60", timeout=60).exit_code == 137
    eventually(lambda: not pod.ready, "the pod is not ready any more")
    assert "Kernel panic" in info(pod)["reason"]
    assert container.wait().exit_code == 137


def test_a_machine_grows_with_its_pods_limits(node: Node) -> None:
    limits = LinuxContainerResources(memory_limit_in_bytes=320 << 20, cpu_quota=200_000, cpu_period=100_000)
    pod = node.pod(resources=limits)
    container = pod.run_idle()
    memory = int(container.sh("grep MemTotal /proc/meminfo").split()[1]) // 1024
    assert memory > 300
    assert container.sh("nproc").strip() == "2"
    assert info(pod)["vcpus"] == "2"


def test_secrets_are_updated_live(node: Node, tmp_path: Path) -> None:
    directory = tmp_path / "secret"
    directory.mkdir()
    (directory / "token").write_text("old")
    container = node.pod().run_idle(mounts=[bind(str(directory), "/secret", readonly=True)])
    assert container.sh("cat /secret/token") == "old"
    (directory / "token.new").write_text("new")
    (directory / "token.new").rename(directory / "token")
    eventually(lambda: container.sh("cat /secret/token"), "the new secret", until=lambda seen: seen == "new")
    assert container.exec("touch", "/secret/x").exit_code != 0


def test_what_a_machine_cannot_share_is_refused_by_name(node: Node) -> None:
    for changes, words in (
        ({"host_network": True}, "host's network"),
        ({"pid_mode": "host"}, "host's pid"),
        ({"host_ipc": True}, "host's ipc"),
    ):
        options: dict[str, Any] = changes
        with pytest.raises(CriError, match=words):
            node.pod(**options)


def test_ten_machines_at_once(node: Node) -> None:
    with ThreadPoolExecutor(node.engine.pods_at_once) as pool:
        pods = list(pool.map(lambda number: node.pod(f"at-once-{number}"), range(node.engine.pods_at_once)))
    assert all(pod.ready for pod in pods)
    assert len({info(pod)["pid"] for pod in pods}) == node.engine.pods_at_once


def test_root_file_systems_in_image_files_are_disks(node: Node) -> None:
    """With containerd's blockfile snapshotter: nothing of them is shared with the host."""
    pod = node.pod(handler="kuasar-qemu-blockfile")
    containers = [pod.run_idle(f"disk-{number}") for number in range(2)]
    for number, container in enumerate(containers):
        device, kind = container.sh("awk '$2 == \"/\" {print $1, $3}' /proc/mounts").split()
        assert (device.startswith("/dev/vd"), kind) == (True, "ext4")
        container.sh(f"echo {number} > /root/mine; sync")
    assert [container.sh("cat /root/mine").strip() for container in containers] == ["0", "1"]
    containers[0].remove()
    assert containers[1].sh("cat /root/mine").strip() == "1"  # taking the one disk out left the other


def test_root_file_systems_of_erofs_layers(node: Node) -> None:
    """With containerd's erofs snapshotter, which mounts the layers and gives an overlay of them."""
    pod = node.pod(handler="kuasar-qemu-erofs")
    containers = [pod.run_idle(f"layers-{number}") for number in range(2)]
    with open("/proc/mounts", encoding="utf-8") as file:
        assert f"{node.stack.layout.containerd_root}/io.containerd.snapshotter.v1.erofs/" in file.read()
    for number, container in enumerate(containers):
        container.sh(f"echo {number} > /root/mine; rm /etc/group; ! test -e /etc/group; sync")
    assert [container.sh("cat /root/mine").strip() for container in containers] == ["0", "1"]
    containers[0].remove()
    assert containers[1].sh("cat /root/mine; cat /etc/passwd").startswith("1\nroot:")
    assert pod.run_idle("third").sh("grep -c root /etc/group").strip() == "1"


@pytest.mark.parametrize(("handler", "disks"), [("kuasar-qemu-erofs", "layer"), ("kuasar-qemu", "packed")])
def test_a_pod_that_shares_nothing_with_its_host(node: Node, handler: str, disks: str, tmp_path: Path) -> None:
    """Its memory is a private view of its template; layers of the erofs snapshotter are disks, directories are packed
    into one; the pod's files and what is only read are copies."""
    (tmp_path / "greeting").write_text("copied")
    pod = node.pod(handler=handler, annotations={"io.kuasar/shared-fs": "none"})
    container = pod.run_idle(mounts=[bind(str(tmp_path / "greeting"), "/greeting", readonly=True)])
    assert info(pod)["start"].startswith("clone of template "), disks
    assert "virtiofs" not in container.sh("cat /proc/mounts")
    assert container.sh("awk '$2 == \"/\" {print $3}' /proc/mounts").strip() == "overlay"
    assert pod.id[:1] and pod.config.hostname in container.sh("cat /etc/hosts /etc/hostname")
    assert container.sh("cat /greeting") == "copied"
    container.sh("echo mine > /root/mine; rm /etc/group; ! test -e /etc/group")
    second = pod.run_idle("second")
    assert second.sh("ls /root; grep -c root /etc/group").strip() == "1"
    container.remove()
    with pytest.raises(CriError, match="no directory of this qemu machine is shared with its host"):
        pod.run_idle("writer", mounts=[bind(str(tmp_path), "/there")])


@contextmanager
def hugetlbfs(path: Path) -> Iterator[Path]:
    """An emptyDir of huge pages as the kubelet makes it."""
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "none", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def test_an_empty_dir_of_huge_pages_is_memory_of_the_guest(node: Node, tmp_path: Path) -> None:
    with hugetlbfs(tmp_path / "volumes" / "kubernetes.io~empty-dir" / "huge") as directory:
        pod = node.pod()
        first, second = (pod.run_idle(f"huge-{number}", mounts=[bind(str(directory), "/huge")]) for number in range(2))
        first.sh("fallocate -l 4194304 /huge/file")
        assert second.sh("stat -c %s /huge/file; stat -f -c %t /huge").split() == ["4194304", "958458f6"]
        assert second.sh("awk '/HugePages_Total/ {print $2}' /proc/meminfo").strip() == "2"
        assert not list(directory.iterdir()), "nothing of it is the host's"
        pod.remove()


@contextmanager
def huge_pages_of_the_host(count: int) -> Iterator[None]:
    """So many more than there were."""
    before = int(needs.HUGE_PAGES_POOL.read_text())
    needs.HUGE_PAGES_POOL.write_text(str(before + count))
    try:
        if int(needs.HUGE_PAGES_POOL.read_text()) < before + count:
            pytest.skip(f"the host cannot make {count} huge pages of 2 MiB now")
        yield
    finally:
        needs.HUGE_PAGES_POOL.write_text(str(before))


def free_huge_pages() -> int:
    """Those that nobody has and nobody has reserved."""
    free, reserved = (
        (needs.HUGE_PAGES_POOL.parent / name).read_text() for name in ("free_hugepages", "resv_hugepages")
    )
    return int(free) - int(reserved)


@needs.HUGE_PAGES
def test_a_machines_memory_is_of_huge_pages(node: Node) -> None:
    """A clone of a template, one that grows, and a third for which nothing is left."""
    limits = LinuxContainerResources(memory_limit_in_bytes=160 << 20)
    with huge_pages_of_the_host(64 + 128):
        free = free_huge_pages()
        pod = node.pod(handler=HUGE_HANDLER, log_directory=f"{node.directory}/huge")
        assert info(pod)["start"].startswith("clone of template ")
        assert free - free_huge_pages() == 64
        assert pod.run_idle().exec("echo", "well").stdout == b"well\n"
        large = node.pod(handler=HUGE_HANDLER, resources=limits)
        assert free - free_huge_pages() == 64 + 128
        memory = int(large.run_idle().sh("grep MemTotal /proc/meminfo").split()[1]) // 1024
        assert memory > 150
        with pytest.raises(CriError, match="a machine needs 64 huge pages of 2 MiB, and the host has 0 left"):
            node.pod(handler=HUGE_HANDLER)
        large.remove()
        pod.remove()
        eventually(free_huge_pages, "all pages are free", until=lambda seen: seen == free)


@contextmanager
def loop_device(path: Path) -> Iterator[str]:
    """A block device of the host with the content of a file."""
    device = subprocess.check_output(["losetup", "--find", "--show", path], text=True).strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_a_block_device_of_a_container_is_that_device(node: Node, tmp_path: Path) -> None:
    content = tmp_path / "content"
    content.write_bytes(b"of the host".ljust(1 << 20, b"\0"))
    with loop_device(content) as device:
        given = [Device(host_path=device, container_path="/dev/data", permissions="rw")]
        pod = node.pod()
        container = pod.run_idle(devices=given)
        assert container.sh("head -c 11 /dev/data") == "of the host"
        container.sh("echo -n of the guest | dd of=/dev/data conv=notrunc,fsync 2>/dev/null")
        container.remove()
        pod.remove()
        with open(device, "rb") as file:
            assert file.read(12) == b"of the guest"
