"""The security settings of pods and containers, seen from inside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kuasar.api.gen.cri.v1.common_pb2 import SecurityProfile
from kuasar.api.gen.cri.v1.container_pb2 import Device
from kuasar.cli.cri import CriError
from tests.e2e.engines import DEVICES, EXEC, HOST_NETWORK, LINUX_DETAILS, SHELL
from tests.e2e.harness import Container, Node, Pod

pytestmark = pytest.mark.needs(SHELL, EXEC)

RUNTIME_DEFAULT = SecurityProfile(profile_type=SecurityProfile.RuntimeDefault)
UNCONFINED = SecurityProfile(profile_type=SecurityProfile.Unconfined)
CHOWN, NET_ADMIN, SYS_ADMIN = 1 << 0, 1 << 12, 1 << 21


def status_of(container: Container) -> dict[str, str]:
    """/proc/1/status of a container, by its keys."""
    lines = container.sh("cat /proc/1/status").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_user_group_and_supplementary_groups(pod: Pod) -> None:
    container = pod.run_idle(user=1000, group=1001, supplemental_groups=[2000, 3000])
    status = status_of(container)
    assert status["Uid"].split() == ["1000"] * 4
    assert status["Gid"].split() == ["1001"] * 4
    # 2000 also comes from the image's /etc/group
    assert set(status["Groups"].split()) >= {"2000", "3000"}
    assert container.sh("id -u; id -g").split() == ["1000", "1001"]
    assert container.exec("touch", "/etc/new").exit_code == 1


def test_capabilities_by_default(pod: Pod) -> None:
    effective = int(status_of(pod.run_idle())["CapEff"], 16)
    assert effective & CHOWN
    assert not effective & (SYS_ADMIN | NET_ADMIN)


@pytest.mark.needs(LINUX_DETAILS)
def test_capabilities_added_and_dropped(pod: Pod) -> None:
    container = pod.run_idle(add_capabilities=["NET_ADMIN"], drop_capabilities=["CHOWN"])
    effective = int(status_of(container)["CapEff"], 16)
    assert effective & NET_ADMIN
    assert not effective & CHOWN
    container.sh("ip link add dummy-e2e type dummy 2>/dev/null || ip link set lo mtu 60000")
    assert container.exec("chown", "1000", "/etc/passwd").exit_code == 1


def test_all_capabilities_dropped(pod: Pod) -> None:
    container = pod.run_idle(drop_capabilities=["ALL"])
    assert int(status_of(container)["CapEff"], 16) == 0
    assert int(container.sh("grep CapEff /proc/self/status").split()[1], 16) == 0


def test_privileged(node: Node) -> None:
    pod = node.pod(privileged=True)
    container = pod.run_idle(privileged=True)
    effective = int(status_of(container)["CapEff"], 16)
    assert effective & SYS_ADMIN
    assert effective & NET_ADMIN
    container.sh("mkdir /mnt && mount -t tmpfs tmpfs /mnt && test -w /proc/sys/kernel/hostname")


@pytest.mark.needs(LINUX_DETAILS)
def test_default_seccomp_profile_blocks(pod: Pod) -> None:
    confined = pod.run_idle("confined", seccomp=RUNTIME_DEFAULT)
    assert status_of(confined)["Seccomp"] == "2"
    free = pod.run_idle("free", seccomp=UNCONFINED)
    assert status_of(free)["Seccomp"] == "0"
    assert free.exec("unshare", "-U", "true").exit_code == 0
    refused = confined.exec("unshare", "-U", "true")
    assert (refused.exit_code, b"Operation not permitted" in refused.stderr) == (1, True)


@pytest.mark.needs(LINUX_DETAILS)
def test_seccomp_profile_from_a_file(pod: Pod, tmp_path: Path) -> None:
    names = ["mkdir", "mkdirat"]
    rules = {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": 28}
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rules]}))
    local = SecurityProfile(profile_type=SecurityProfile.Localhost, localhost_ref=str(profile))
    container = pod.run_idle(seccomp=local)
    container.sh("touch /fine")
    refused = container.exec("mkdir", "/new")
    assert (refused.exit_code, b"No space left on device" in refused.stderr) == (1, True)


@pytest.mark.needs(LINUX_DETAILS)
@pytest.mark.parametrize("wanted", [True, False])
def test_no_new_privileges(pod: Pod, wanted: bool) -> None:
    container = pod.run_idle(no_new_privs=wanted)
    assert status_of(container)["NoNewPrivs"] == str(int(wanted))
    assert container.sh("grep NoNewPrivs /proc/self/status").split()[1] == str(int(wanted))


@pytest.mark.needs(LINUX_DETAILS)
def test_masked_and_read_only_paths(pod: Pod) -> None:
    container = pod.run_idle(masked_paths=["/proc/keys", "/proc/scsi", "/sys/firmware"], readonly_paths=["/proc/sys"])
    assert container.sh("cat /proc/keys; for d in /proc/scsi /sys/firmware; do test ! -d $d || ls $d; done") == ""
    refused = container.exec("sh", "-c", "echo x > /proc/sys/kernel/domainname")
    assert refused.exit_code != 0
    assert b"Read-only file system" in refused.stderr


@pytest.mark.needs(DEVICES)
def test_devices_that_are_given(pod: Pod) -> None:
    given = [
        Device(host_path="/dev/zero", container_path="/dev/my-zero", permissions="rw"),
        Device(host_path="/dev/loop-control", container_path="/dev/my-loop", permissions="r"),
    ]
    container = pod.run_idle(devices=given)
    assert container.sh("head -c 4 /dev/my-zero | xxd -p").strip() == "00000000"
    container.sh("exec 3< /dev/my-loop")
    refused = container.exec("sh", "-c", "exec 3<> /dev/my-loop")  # only reading was granted
    assert b"Operation not permitted" in refused.stderr


@pytest.mark.needs(DEVICES)
def test_other_devices_cannot_be_opened(pod: Pod) -> None:
    container = pod.run_idle(seccomp=UNCONFINED)
    container.sh("mknod /dev/disk b 7 0; mknod /dev/loop c 10 237")
    for device in ("/dev/disk", "/dev/loop"):
        refused = container.exec("head", "-c", "1", device)
        assert b"Operation not permitted" in refused.stderr
    container.sh("echo x > /dev/null; head -c 1 /dev/urandom > /dev/full || true; test -c /dev/tty; test -L /dev/fd")


def test_resource_limits_are_those_of_the_specification(pod: Pod) -> None:
    """CRI has no rlimits of its own; the container's are the node's, not those of a process of ours."""
    seen = pod.run_idle().sh("cat /proc/1/limits")
    for name in ("Max open files", "Max processes", "Max core file size", "Max stack size"):
        assert name in seen
    (files,) = [line for line in seen.splitlines() if line.startswith("Max open files")]
    assert int(files.split()[3]) >= 1024


def test_unknown_user_is_named(pod: Pod) -> None:
    container = pod.create(pod.engine.programs.idle(), user=123456)
    container.start()
    assert container.sh("id -u").strip() == "123456"  # a number needs no entry in /etc/passwd


@pytest.mark.needs(LINUX_DETAILS)
def test_sysctls_of_the_pod(node: Node) -> None:
    wanted = {"net.ipv4.ip_unprivileged_port_start": "79", "kernel.shm_rmid_forced": "1"}
    container = node.pod(sysctls=wanted).run_idle()
    values = container.sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced")
    assert values.split() == ["79", "1"]
    with open("/proc/sys/kernel/shm_rmid_forced", encoding="ascii") as file:
        assert file.read().strip() == "0"  # the host's is untouched


@pytest.mark.needs(LINUX_DETAILS)
@pytest.mark.parametrize("key", ["kernel.panic", "vm.swappiness"])
def test_sysctls_that_are_not_the_pod_s_are_refused(node: Node, key: str) -> None:
    with open(f"/proc/sys/{key.replace('.', '/')}", encoding="ascii") as file:
        before = file.read()
    with pytest.raises(CriError, match=key):
        node.pod(sysctls={key: "17"})
    with open(f"/proc/sys/{key.replace('.', '/')}", encoding="ascii") as file:
        assert file.read() == before


@pytest.mark.needs(LINUX_DETAILS, HOST_NETWORK)
def test_network_sysctls_are_refused_on_the_host_network(node: Node) -> None:
    with pytest.raises(CriError, match=r"net\.ipv4\.ip_unprivileged_port_start"):
        node.pod(host_network=True, sysctls={"net.ipv4.ip_unprivileged_port_start": "81"})
