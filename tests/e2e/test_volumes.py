"""Volumes as Kubernetes gives them: directories and files of the host, with their access and propagation."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kuasar.api.gen.cri.v1.container_pb2 import MountPropagation
from kuasar.cli.cri import CriError, bind
from tests.e2e.engines import BIDIRECTIONAL, EXEC, OURS, SHARED_FILES, SHELL
from tests.e2e.harness import Pod

HOST_TO_CONTAINER = MountPropagation.PROPAGATION_HOST_TO_CONTAINER
BOTH_WAYS = MountPropagation.PROPAGATION_BIDIRECTIONAL


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A directory that is a shared mount, as /var/lib/kubelet is on a node."""
    place = tmp_path / "shared"
    place.mkdir()
    subprocess.run(["mount", "--bind", place, place], check=True)
    subprocess.run(["mount", "--make-shared", place], check=True)
    yield place
    subprocess.run(["umount", "-R", "-l", place], check=True)


@pytest.mark.needs(SHELL, EXEC, SHARED_FILES)
def test_writable(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "from-host").write_text("host\n")
    container = pod.run_idle(mounts=[bind(str(tmp_path), "/volume")])
    assert container.sh("cat /volume/from-host; echo container > /volume/from-container") == "host\n"
    assert (tmp_path / "from-container").read_text() == "container\n"
    (tmp_path / "later").write_text("later\n")
    assert container.sh("cat /volume/later") == "later\n"


@pytest.mark.needs(SHELL, EXEC)
def test_read_only(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("host\n")
    container = pod.run_idle(mounts=[bind(str(tmp_path), "/volume", readonly=True)])
    assert container.sh("cat /volume/file") == "host\n"
    result = container.exec("touch", "/volume/new")
    assert result.exit_code == 1
    assert b"Read-only file system" in result.stderr
    assert os.listdir(tmp_path) == ["file"] or "new" not in os.listdir(tmp_path)


@pytest.mark.needs(SHELL, EXEC, SHARED_FILES)
def test_subdirectory_and_single_file(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "sub" / "deep" / "inner").write_text("inner\n")
    (tmp_path / "outer").write_text("outer\n")
    container = pod.run_idle(
        mounts=[
            bind(str(tmp_path / "sub" / "deep"), "/volume"),
            bind(str(tmp_path / "outer"), "/etc/single", readonly=True),
        ]
    )
    assert container.sh("ls /volume; cat /volume/inner /etc/single") == "inner\ninner\nouter\n"


@pytest.mark.needs(SHELL, EXEC, SHARED_FILES)
def test_one_volume_in_two_containers(pod: Pod, tmp_path: Path) -> None:
    writer = pod.run_idle("writer", mounts=[bind(str(tmp_path), "/out")])
    reader = pod.run_idle("reader", mounts=[bind(str(tmp_path), "/in", readonly=True)])
    writer.sh("echo shared > /out/file")
    assert reader.sh("cat /in/file") == "shared\n"


@pytest.mark.needs(SHELL, EXEC, SHARED_FILES)
def test_later_mounts_of_the_host_arrive_only_if_asked_for(shared: Path, pod: Pod) -> None:
    (shared / "later").mkdir()
    follows = pod.run_idle("follows", mounts=[bind(str(shared), "/volume", propagation=HOST_TO_CONTAINER)])
    private = pod.run_idle("private", mounts=[bind(str(shared), "/volume")])
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", shared / "later"], check=True)
    (shared / "later" / "file").write_text("arrived\n")
    assert follows.sh("cat /volume/later/file") == "arrived\n"
    assert private.exec("cat", "/volume/later/file").exit_code == 1


@pytest.mark.needs(SHELL, EXEC, SHARED_FILES)
def test_mounts_under_a_volume_are_seen(shared: Path, pod: Pod) -> None:
    (shared / "below").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", shared / "below"], check=True)
    (shared / "below" / "file").write_text("below\n")
    container = pod.run_idle(mounts=[bind(str(shared / "below"), "/sub"), bind(str(shared), "/volume")])
    assert container.sh("cat /sub/file /volume/below/file") == "below\nbelow\n"


@pytest.mark.needs(SHELL, BIDIRECTIONAL)
def test_mounts_of_the_container_arrive_on_the_host(shared: Path, pod: Pod) -> None:
    (shared / "inside").mkdir()
    container = pod.run_idle(
        mounts=[bind(str(shared), "/volume", propagation=BOTH_WAYS)], add_capabilities=["SYS_ADMIN"]
    )
    container.sh("mount -t tmpfs tmpfs /volume/inside && touch /volume/inside/file")
    assert (shared / "inside" / "file").exists()


@pytest.mark.needs(OURS)
def test_bidirectional_propagation_is_refused(shared: Path, pod: Pod) -> None:
    with pytest.raises(CriError, match=r"(?i)/volume.*(bidirectional|propagation|shared)"):
        pod.run_idle(mounts=[bind(str(shared), "/volume", propagation=BOTH_WAYS)])
    assert pod.run_idle("other").running()


def test_a_volume_that_does_not_exist_is_named(pod: Pod) -> None:
    # containerd itself makes a missing host directory; a path through a file cannot be made
    with pytest.raises(CriError, match="/etc/passwd/nowhere"):
        pod.run_idle(mounts=[bind("/etc/passwd/nowhere", "/volume")])


@pytest.mark.needs(SHELL, EXEC, SHARED_FILES)
def test_read_only_root(pod: Pod, tmp_path: Path) -> None:
    container = pod.run_idle(readonly_rootfs=True, mounts=[bind(str(tmp_path), "/volume")])
    result = container.exec("touch", "/new")
    assert (result.exit_code, b"Read-only file system" in result.stderr) == (1, True)
    container.sh("touch /volume/new /dev/shm/new")


@pytest.mark.needs(SHELL, EXEC)
def test_root_is_the_container_s_own(pod: Pod) -> None:
    one, two = pod.run_idle("one"), pod.run_idle("two")
    one.sh("echo mine > /file")
    assert two.exec("cat", "/file").exit_code == 1
