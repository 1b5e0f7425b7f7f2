"""Disks, volumes and the share: plugged into a running guest, used by containers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from guest.closure import Unpacked
from tests.integration.guest.conftest import WORK, Built, needs_qemu, needs_root
from tests.integration.guest.containers import answer, asking, bind, container, run_to_end
from tests.integration.guest.machine import AgentConnection, Machine, start_machine

pytestmark = needs_qemu

VIRTIOFSD = "/usr/lib/qemu/virtiofsd"


@contextmanager
def disk(machine: Machine, serial: str, path: Path, port: int, read_only: bool = False) -> Iterator[None]:
    """A disk in the machine."""
    machine.qmp.add_disk(serial, path, port, read_only)
    try:
        yield
    finally:
        machine.qmp.remove_disk(serial)


@pytest.fixture
def ext4(tmp_path: Path) -> Path:
    """An empty file system of 8 MiB."""
    path = tmp_path / "ext4"
    with open(path, "wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", str(path)], check=True, timeout=60)
    return path


def erofs(directory: Path, name: str, files: dict[str, str]) -> Path:
    """An image with some files."""
    tree, image = directory / f"{name}-tree", directory / name
    tree.mkdir()
    for file, text in files.items():
        (tree / file).write_text(text)
    command = Unpacked(str(WORK / "unpacked")).command("usr/bin/mkfs.erofs", "--quiet", str(image), str(tree))
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return image


def mounting(request: dict[str, Any], **mount: Any) -> dict[str, Any]:
    """The request with one more mount."""
    request["spec"]["mounts"].append({"destination": "/mnt", **mount})
    return request


def refusal(agent: AgentConnection, request: dict[str, Any]) -> str:
    """The words of an error; nothing is left of the container."""
    error = agent.ask("task.create", request).error
    assert error is not None
    assert request["id"] not in agent.call("info")["containers"]
    return str(error["message"])


def test_containers_share_the_file_system_of_a_disk(machine: Machine, agent: AgentConnection, ext4: Path) -> None:
    source = {"type": "ext4", "source": "disk:data-1"}
    with disk(machine, "data-1", ext4, 0):
        writer = mounting(asking("writer", 'open("/mnt/x", "w").write("kept")'), **source, options=["rw"])
        assert answer(machine, agent, writer) == 4
        reader = mounting(asking("reader", '[text("/mnt/x"), open("/mnt/y", "w")]'), **source, options=["ro"])
        assert answer(machine, agent, reader) == ["EROFS", "/mnt/y"]
    with disk(machine, "data-1", ext4, 1, read_only=True):
        again = mounting(asking("again", 'text("/mnt/x")'), **source, options=["ro"])
        assert answer(machine, agent, again) == "kept"


def test_a_root_file_system_of_several_disks(
    machine: Machine, agent: AgentConnection, tmp_path: Path, ext4: Path
) -> None:
    lower = erofs(tmp_path, "lower", {"a": "lower", "b": "lower"})
    upper = erofs(tmp_path, "upper", {"b": "upper"})
    with (
        disk(machine, "lower", lower, 0, True),
        disk(machine, "upper", upper, 1, True),
        disk(machine, "rw", ext4, 2),
    ):
        request = asking("layers", '[text("/mnt/a"), text("/mnt/b"), open("/mnt/c", "w").write("c")]')
        # The guest's own root once more, with the disks over an empty directory of it.
        layers = [
            {"type": "erofs", "source": "disk:lower", "options": ["ro", "loop"]},
            {"type": "erofs", "source": "disk:upper", "options": ["ro", "loop"]},
            {"type": "ext4", "source": "disk:rw", "options": ["rw"]},
        ]
        options = ["lowerdir={{ overlay 1 0 }}", "upperdir={{ mount 2 }}/upper", "workdir={{ mount 2 }}/work"]
        overlay = {"type": "overlay", "source": "overlay", "target": "/mnt", "options": options}
        request["rootfs"] = [*layers, *request["rootfs"], overlay]
        assert answer(machine, agent, request) == ["lower", "upper", 1]


def test_a_disk_as_a_device(machine: Machine, agent: AgentConnection, ext4: Path) -> None:
    ext4.write_bytes(b"content".ljust(1 << 20, b"\0"))
    with disk(machine, "raw", ext4, 0):
        request = asking(
            "device", '[open("/dev/data", "rb").read(7).decode(), stat.S_ISBLK(os.stat("/dev/data").st_mode)]'
        )
        mounts = request["spec"]["mounts"]
        mounts[mounts.index(bind("/dev"))] = {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}
        mounts.append(bind("/dev/console"))
        linux = request["spec"]["linux"]
        linux["devices"] = [{"path": "/dev/data", "type": "b", "major": 7, "minor": 3, "kuasarDisk": "raw"}]
        rules = [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "access": "rwm"}]
        linux["resources"]["devices"] = [*rules, {"allow": True, "type": "b", "major": 7, "minor": 3, "access": "r"}]
        assert answer(machine, agent, request) == ["content", True]


def test_containers_share_a_volume_in_memory(machine: Machine, agent: AgentConnection) -> None:
    source = {"type": "tmpfs", "source": "volume:cache", "options": ["size=1m", "noexec"]}
    writer = mounting(asking("first", 'open("/mnt/x", "w").write("shared")'), **source)
    assert answer(machine, agent, writer) == 6
    size = '[text("/mnt/x"), os.statvfs("/mnt").f_blocks * os.statvfs("/mnt").f_frsize]'
    assert answer(machine, agent, mounting(asking("second", size), **source)) == ["shared", 1 << 20]
    other = mounting(container("third", "pass"), **{**source, "options": ["size=2m"]})
    assert "spec.mounts[5].options: the volume cache exists as tmpfs with size=1m" in refusal(agent, other)


def test_a_volume_of_huge_pages(machine: Machine, agent: AgentConnection) -> None:
    source = {"type": "hugetlbfs", "source": "volume:huge", "options": ["pagesize=2M", "size=4M"]}
    pages = 'text("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages").strip()'
    assert answer(machine, agent, mounting(asking("huge", pages), **source)) == "2"


def filling(name: str, volume: str, limit: int = 0) -> dict[str, Any]:
    """A container that takes 4 MiB of a volume of huge pages, and says how large its file is then."""
    take = 'os.posix_fallocate(os.open("/mnt/x", os.O_RDWR | os.O_CREAT), 0, 4 << 20)'
    request = asking(name, f'[{take}, os.stat("/mnt/x").st_size][1]')
    if limit:
        limits = [{"pageSize": "2MB", "limit": limit}]
        request["spec"]["linux"]["resources"]["hugepageLimits"] = limits
    return mounting(request, type="hugetlbfs", source=f"volume:{volume}", options=["pagesize=2M"])


def test_huge_pages_of_a_volume_without_a_size_are_made_when_they_are_used(
    machine: Machine, agent: AgentConnection
) -> None:
    """As the kubelet mounts them: sizes are not in the options."""
    assert answer(machine, agent, filling("first", "pages")) == 4 << 20
    seen = mounting(asking("second", 'os.stat("/mnt/x").st_blocks * 512'), type="hugetlbfs", source="volume:pages")
    seen["spec"]["mounts"][-1]["options"] = ["pagesize=2M"]
    assert answer(machine, agent, seen) == 4 << 20


def test_a_container_gets_no_more_huge_pages_than_its_limit(machine: Machine, agent: AgentConnection) -> None:
    assert answer(machine, agent, filling("within", "limited", 4 << 20)) == 4 << 20
    assert answer(machine, agent, filling("beyond", "narrow", 2 << 20))[0] in ("ENOSPC", "ENOMEM")


def test_a_limit_of_huge_pages_that_the_processor_has_not_is_named(agent: AgentConnection) -> None:
    request = container("odd", "pass")
    request["spec"]["linux"]["resources"]["hugepageLimits"] = [{"pageSize": "3MB", "limit": 1}]
    assert "hugepageLimits[0].pageSize: there are no huge pages of 3072 KiB" in refusal(agent, request)


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        ({"type": "ext4", "source": "disk:"}, "spec.mounts[5].source: '' is no serial number"),
        ({"type": "ext4", "source": "disk:../vda"}, "spec.mounts[5].source: '../vda' is no serial number"),
        ({"type": "vfat", "source": "disk:x"}, "spec.mounts[5].type: a disk has one of ext4, xfs, erofs, squashfs"),
        ({"type": "ext4", "source": "disk:x", "options": "ro"}, "spec.mounts[5].options: a list is needed"),
        ({"type": "ext4", "source": "volume:x"}, "spec.mounts[5].type: 'ext4' is none of tmpfs, hugetlbfs"),
        ({"type": "tmpfs", "source": "volume:/x"}, "spec.mounts[5].source: '/x' is not an identifier"),
        ({"type": "tmpfs", "source": "volume:x", "options": ["size=big"]}, "spec.mounts[5].options: 'big' is no size"),
        ({"type": "tmpfs", "source": "volume:x", "options": ["sizes=1"]}, "spec.mounts[5].options: the kernel refuses"),
    ],
)
def test_what_cannot_be_is_refused_by_name(agent: AgentConnection, mount: dict[str, Any], words: str) -> None:
    assert words in refusal(agent, mounting(container("wrong", "pass"), **mount))


def test_a_disk_that_does_not_come_is_named(agent: AgentConnection) -> None:
    request = mounting(container("waiting", "pass"), type="ext4", source="disk:nowhere")
    error = agent.ask("task.create", request, timeout=1.0).error
    assert error is not None
    assert error["kind"] == "deadline_exceeded"
    assert "spec.mounts[5].source: the machine has no disk with the serial number nowhere" in error["message"]


@contextmanager
def virtiofsd(directory: Path, path: str) -> Iterator[None]:
    """The daemon behind a share of ``directory``, listening at ``path``."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        options = [f"--fd={listener.fileno()}", "-o", f"source={directory}", "-o", "sandbox=chroot"]
        daemon = subprocess.Popen(
            [VIRTIOFSD, *options, "--thread-pool-size=1"],
            pass_fds=(listener.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    try:
        yield
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(10)


@pytest.fixture
def own(built: Built) -> Iterator[tuple[Machine, AgentConnection]]:
    """A guest for one test alone: one that has had a share does not become as it was."""
    with start_machine(built.image, built.directory, built.root_disk) as machine, machine.connect() as agent:
        yield machine, agent


@needs_root
def test_the_pods_share(own: tuple[Machine, AgentConnection], tmp_path: Path) -> None:
    machine, agent = own
    error = agent.ask("guest.share", {"tag": "kuasar"}, timeout=0.5).error
    assert error is not None
    assert (error["kind"], "the machine has no share kuasar" in error["message"]) == ("deadline_exceeded", True)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "hosts").write_text("127.0.0.1 localhost\n")
    path = os.path.join(machine.directory, "fs")
    address = {"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": path}}, "server": False}}
    with virtiofsd(tmp_path, path):
        machine.qmp.call("chardev-add", id="fs", backend=address)
        machine.qmp.call("device_add", driver="vhost-user-fs-pci", id="dev-fs", chardev="fs", tag="kuasar", bus="p3")
        agent.call("guest.share", {"tag": "kuasar"})
        agent.call("guest.share", {"tag": "kuasar"})
        request = asking("shared", 'text("/mnt/etc/hosts")')
        request["spec"]["mounts"].append(bind("/run/kuasar/shared") | {"destination": "/mnt"})
        assert answer(machine, agent, request) == "127.0.0.1 localhost\n"
        other = agent.ask("guest.share", {"tag": "other"}).error
        assert other is not None
        assert other["message"] == "tag: kuasar is mounted already, not other"
        request = container("unmount", "pass")
        assert run_to_end(agent, request) == 0
