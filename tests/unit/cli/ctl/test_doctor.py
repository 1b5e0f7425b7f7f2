"""Faults planted one by one: each is named, with what to do about it."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from kuasar.cli.ctl.doctor import containerd, kernel, machines, storage
from kuasar.cli.ctl.doctor.finding import FAIL, PASS, WARN
from kuasar.cli.ctl.node import listener_pid
from kuasar.core.config import Config, load
from tests import needs
from tests.unit.cli.ctl.node_files import Files


@pytest.mark.parametrize(
    ("release", "status"), [("6.1.0-cloud", PASS), ("5.12.3", PASS), ("5.11.9", FAIL), ("4.19.0", FAIL), ("odd", FAIL)]
)
def test_kernel(release: str, status: str) -> None:
    found = kernel._version(release)
    assert found.status == status
    assert release in found.reason
    assert bool(found.remedy) is (status == FAIL)


def proc(root: Path, mounts: str, capabilities: int = 0x1FFFFFFFFFF) -> str:
    """A part of /proc."""
    for name in ("pid", "mnt", "uts", "ipc", "net", "cgroup"):
        path = root / "self" / "ns" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "sys" / "user").mkdir(parents=True)
    for name in ("max_mnt_namespaces", "max_pid_namespaces", "max_net_namespaces"):
        (root / "sys" / "user" / name).write_text("1000\n")
    (root / "self" / "mountinfo").write_text(mounts)
    (root / "self" / "status").write_text(f"Name:\tx\nCapEff:\t{capabilities:016x}\n")
    return str(root)


SHARED = "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"


def test_namespaces_that_are_missing_or_forbidden(tmp_path: Path) -> None:
    path = proc(tmp_path, SHARED)
    assert kernel._namespaces(path).status == PASS
    (tmp_path / "sys" / "user" / "max_pid_namespaces").write_text("0\n")
    assert "user.max_pid_namespaces = 0" in kernel._namespaces(path).reason
    (tmp_path / "self" / "ns" / "cgroup").unlink()
    assert "no namespaces of kind cgroup" in kernel._namespaces(path).reason


@needs.ROOT
def test_privileges(tmp_path: Path) -> None:
    assert kernel._privileges(proc(tmp_path / "a", SHARED)).status == PASS
    found = kernel._privileges(proc(tmp_path / "b", SHARED, 0x1FFFFFFFFFF & ~(1 << 21)))
    assert (found.status, found.reason) == (FAIL, "missing: CAP_SYS_ADMIN")


@pytest.mark.parametrize(
    ("mounts", "status"),
    [(SHARED, PASS), (SHARED.replace("shared:1 ", ""), WARN), ("30 1 0:5 / /proc rw shared:2 - proc proc rw\n", WARN)],
)
def test_mount_propagation(tmp_path: Path, mounts: str, status: str) -> None:
    assert kernel._propagation(proc(tmp_path, mounts)).status == status


def test_state_directory(tmp_path: Path) -> None:
    state = tmp_path / "s"
    assert storage._state(str(state)).status == FAIL
    state.mkdir(mode=0o755)
    found = storage._state(str(state))
    assert (found.status, found.remedy) == (FAIL, f"chmod 0700 {state}")
    state.chmod(0o700)
    assert storage._state(str(state)).status == PASS


def test_descriptors_are_those_of_the_process_behind_the_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "x.sock")
    assert storage._descriptors("d", lambda: listener_pid(path)).status == WARN
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        found = storage._descriptors("d", lambda: listener_pid(path))
    assert found.status == PASS
    assert " of " in found.reason


def config(*engines: str) -> Config:
    """With these sandboxers."""
    from kuasar.core.config import Engine, Sandboxer

    return Config(
        engines={name: Engine(kind="runc") for name in engines},
        sandboxers={f"kuasar-{name}": Sandboxer(engine=name) for name in engines},
    )


def test_containerd_must_be_new_enough() -> None:
    assert containerd._version("v2.1.4").status == PASS
    assert containerd._version("1.7.20").status == FAIL
    assert containerd._version("2.0.9~ds1").status == FAIL


def runtimes(**entries: dict[str, str]) -> dict[str, Any]:
    return {"containerd": {"runtimes": entries}}


def test_containerd_must_know_us() -> None:
    (found,) = containerd._handlers(config("runc"), runtimes(runc={"runtimeType": "io.containerd.runc.v2"}))
    assert found.status == FAIL
    ours = {"runtimeType": "io.containerd.kuasar.v2", "sandboxer": "kuasar-runc"}
    (found,) = containerd._handlers(config("runc"), runtimes(k=ours))
    assert (found.status, found.reason) == (PASS, "runtimes: k")
    (found,) = containerd._handlers(config("other"), runtimes(k=ours))
    assert found.status == WARN
    assert "k has sandboxer 'kuasar-runc', which kuasar.toml does not have (it has: kuasar-other)" in found.reason


def test_cni_plugins(tmp_path: Path) -> None:
    network, programs = tmp_path / "net.d", tmp_path / "bin"
    network.mkdir()
    programs.mkdir()
    (network / "10-x.conflist").write_text(
        json.dumps({"plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}, {"type": "loopback"}]})
    )
    (network / "20-broken.conf").write_text("{")
    for name in ("bridge", "loopback"):
        (programs / name).touch(mode=0o755)
    settings = {"cni": {"confDir": str(network), "binDirs": [str(programs)]}}
    (found,) = containerd._network({"NetworkReady": (True, "")}, settings)
    assert found.status == WARN
    assert f"{network} names host-local, not to be found in {programs}" in found.reason
    (programs / "host-local").touch(mode=0o755)
    (found,) = containerd._network({"NetworkReady": (True, "")}, settings)
    assert (found.status, found.reason) == (PASS, f"{network}: bridge host-local loopback")
    (found,) = containerd._network({"NetworkReady": (False, "cni plugin not initialized")}, settings)
    assert "cni plugin not initialized" in found.reason


def test_a_guest_image_that_is_truncated(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.mkdir()
    files = {name: {"bytes": 3, "sha256": "0" * 64} for name in ("vmlinux", "initrd", "root.erofs")}
    values: dict[str, Any] = {"format": 1, "kernel_release": "6", "command_line": "", "source_date_epoch": 1}
    (image / "image.json").write_text(json.dumps({**values, "files": files, "packages": []}))
    for name in files:
        (image / name).write_bytes(b"12")
    path = tmp_path / "kuasar.toml"
    path.write_text(f'sandboxers = {{}}\n[engines.qemu]\nimage = "{image}"\n')
    (found,) = machines._images(load(str(path)))
    assert found.status == WARN
    assert "is truncated: 2 bytes of 3" in found.reason


def test_engines_that_cannot_be_used() -> None:
    entry = {"name": "runc", "kind": "runc", "usable": False, "reason": "there is no runc", "details": {}}
    none, one = machines._engines(config("runc"), [entry])
    assert (none.status, one.status, one.reason) == (FAIL, WARN, "there is no runc")
    assert "kuasar-runc" in one.remedy


def test_the_whole_report_of_a_node_that_is_down(files: Files) -> None:
    """Every process is away: all of that is said, and nothing breaks."""
    report = json.loads(files.ctl("doctor", "--json").stdout)
    found = {each["check"]: each for each in report["checks"]}
    for name in ("supervisord", "gateway", "containerd"):
        assert found[name]["status"] == FAIL
        assert found[name]["remedy"]
    assert str(files.root) in found["gateway"]["reason"]
    assert found["engine qemu"]["status"] == WARN
    assert not [each for each in report["checks"] if "the check itself failed" in each["reason"]]
    assert sum(report[status] for status in (PASS, WARN, FAIL)) == len(report["checks"])
    done = files.ctl("doctor")
    assert done.exit_code == 1
    assert "→ start containerd" in done.stdout
