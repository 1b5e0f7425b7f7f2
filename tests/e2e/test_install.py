"""``kuasarctl install`` and ``uninstall`` for real, on a node with systemd: it serves, survives, and leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from kuasar.cli.cri import CriClient, CriError, container_config, pod_config
from kuasar.core.config import Config
from tests.deadline import eventually
from tests.e2e.booted import BootedNode, booted_node

OURS = set(Config().sandboxers)
SYSTEMD = pytest.mark.skipif(not Path("/lib/systemd/systemd").exists(), reason="systemd is not installed here")
ONCE = pytest.mark.skipif(
    os.environ.get("ENGINE", "") not in ("", "kuasar-runc"), reason="installing is the same for every engine"
)
pytestmark = [SYSTEMD, ONCE, pytest.mark.root]


@pytest.fixture
def node() -> Iterator[BootedNode]:
    """A fresh one."""
    with booted_node() as made:
        yield made


def start_pod(node: BootedNode, cri: CriClient) -> tuple[str, str]:
    """A pod of ours with a container that idles."""
    image = node.add_image()
    spec = pod_config("web", log_directory="/var/log/pods-of-the-test")
    pod = cri.run_pod(spec, "kuasar-runc")
    container = cri.create_container(pod, container_config("idle", image, ["sleep", "100000"]), spec)
    cri.start(container)
    return pod, container


def is_stopped(cri: CriClient, pod: str) -> bool:
    """Stop it, as the kubelet does: again, while containerd has not found the new gateway."""
    try:
        cri.stop_pod(pod)
    except CriError as error:
        assert error.code == grpc.StatusCode.UNAVAILABLE, error
        return False
    return True


def test_a_whole_life(node: BootedNode) -> None:
    before = node.tree()
    assert json.loads(node.install("--dry-run", "--json").out)["services"] == [
        "start kuasar.service",
        "restart containerd.service",
    ]
    assert node.tree() == before
    node.install()
    assert node.state("kuasar.service") == node.state("containerd.service") == "active"
    assert node.show("kuasar.service", "StatusText") == "serving"
    assert node.handlers() >= OURS
    pids = node.main_pid("kuasar.service"), node.main_pid("containerd.service")
    installed = node.tree()
    again = node.install()
    assert again.out == "nothing to do: all of it is installed\n"
    assert (node.main_pid("kuasar.service"), node.main_pid("containerd.service")) == pids

    with node.cri() as cri:
        pod, container = start_pod(node, cri)
        assert cri.exec_sync(container, ["echo", "here"]).stdout == b"here\n"
        refused = node.uninstall(check=False)
        assert refused.code == 1
        assert f"there are 1 sandboxes ({pod})" in refused.err

        node.run("systemctl", "restart", "kuasar.service")
        assert cri.exec_sync(container, ["echo", "after a restart"]).stdout == b"after a restart\n"
        node.run("kill", "-KILL", str(node.main_pid("kuasar.service")))
        eventually(lambda: node.state("kuasar.service") == "active", "systemd has restarted it", timeout=60)
        assert cri.exec_sync(container, ["echo", "after a crash"]).stdout == b"after a crash\n"
        node.run("systemctl", "restart", "containerd.service")
    with node.cri() as cri:
        assert cri.exec_sync(container, ["echo", "containerd, too"]).stdout == b"containerd, too\n"
        assert cri.pod_status(pod).status.runtime_handler == "kuasar-runc"
        cri.stop_pod(pod)
        assert node.uninstall(check=False).code == 1  # containerd still knows it
        cri.remove_pod(pod)

    shutil.rmtree(f"{node.root}/var/log/pods-of-the-test")
    assert set(installed) - set(before)
    node.uninstall()
    assert node.tree() == before
    assert node.state("kuasar.service") == "inactive"
    assert node.state("containerd.service") == "active"
    assert not node.handlers() & OURS
    assert not Path(node.path("/run/kuasar")).exists()
    assert node.uninstall(check=False).code == 3


def test_a_gateway_that_hangs_is_replaced_and_no_container_notices(node: BootedNode) -> None:
    node.install()
    override = Path(f"{node.root}/etc/systemd/system/kuasar.service.d/sooner.conf")
    override.parent.mkdir()
    override.write_text("[Service]\nWatchdogSec=10\n")
    node.run("systemctl", "daemon-reload")
    config = Path(f"{node.root}/etc/kuasar/kuasar.toml")
    config.write_text(config.read_text().replace('log_level = "info"', 'log_level = "debug"'))
    assert node.install().out == "restart kuasar.service\n", "for the configuration that an operator has changed"
    with node.cri() as cri:
        pod, container = start_pod(node, cri)
        supervisord = node.main_pid("kuasar.service")
        node.run("kill", "-STOP", node.supervisorctl("pid", "gateway").strip())
        eventually(
            lambda: node.main_pid("kuasar.service") not in (0, supervisord) and node.state("kuasar.service"),
            "systemd has restarted it",
            timeout=120,
            until=lambda state: state == "active",
        )
        assert cri.exec_sync(container, ["echo", "not noticed"]).stdout == b"not noticed\n"
        eventually(lambda: is_stopped(cri, pod), "containerd has dialled the new gateway", timeout=60)
        cri.remove_pod(pod)
    node.uninstall("--purge")
    assert not Path(node.path("/run/kuasar")).exists()


def test_a_containerd_that_does_not_come_back(node: BootedNode) -> None:
    unit = Path(f"{node.root}/etc/systemd/system/containerd.service")
    refuse = "ExecStartPre=/bin/sh -c '! grep -q kuasar /etc/containerd/config.toml'\nExecStart="
    unit.write_text(unit.read_text().replace("ExecStart=", refuse, 1))
    node.run("systemctl", "daemon-reload")
    before = node.tree()
    failed = node.install(check=False)
    assert failed.code == 1
    assert "systemctl restart containerd.service" in failed.err
    assert "everything was put back as it was" in failed.err
    assert node.state("containerd.service") == "active"
    assert not node.handlers() & OURS
    assert node.state("kuasar.service") == "inactive"
    assert node.tree() == before


def test_a_containerd_that_would_not_find_the_shim(node: BootedNode) -> None:
    unit = Path(f"{node.root}/etc/systemd/system/containerd.service")
    unit.write_text(unit.read_text().replace("/usr/local/sbin:/usr/local/bin:", ""))
    node.run("systemctl", "daemon-reload")
    node.run("systemctl", "restart", "containerd.service")
    before = node.tree()
    failed = node.install(check=False)
    assert failed.code == 1
    assert "containerd-shim-kuasar-v2 is not on containerd's PATH" in failed.err
    assert node.tree() == before
    assert node.state("containerd.service") == "active"
    assert not node.handlers() & OURS


def test_a_gateway_that_does_not_start_leaves_containerd_alone(node: BootedNode) -> None:
    config = Path(f"{node.root}/etc/kuasar/kuasar.toml")
    config.parent.mkdir()
    config.write_text('state_dir = "/run/open"\n')
    Path(node.path("/run/open")).mkdir(mode=0o755)
    before, pid = node.tree(), node.main_pid("containerd.service")
    failed = node.install(check=False)
    assert failed.code == 1
    assert "only its owner may enter" in failed.err
    assert node.tree() == before
    assert node.main_pid("containerd.service") == pid
    assert node.state("kuasar.service") == "inactive"
