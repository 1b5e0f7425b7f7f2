"""What the containers of a pod share with each other and with the host, and what they do not."""

from __future__ import annotations

import os
import socket

import pytest

from tests.deadline import eventually
from tests.e2e.engines import EXEC, HOST_IPC, HOST_NETWORK, HOST_PID, MESSAGE_QUEUES, SHARED_KERNEL, SHARED_PID, SHELL
from tests.e2e.harness import Container, Node, Pod

pytestmark = pytest.mark.needs(SHELL, EXEC)

KINDS = ("net", "ipc", "uts", "pid", "mnt")


def namespaces(container: Container) -> dict[str, str]:
    """The namespaces in which a container's processes are, by kind."""
    links = container.sh("".join(f"readlink /proc/self/ns/{kind};" for kind in KINDS)).split()
    return dict(zip(KINDS, links, strict=True))


def host_namespaces() -> dict[str, str]:
    """Ours."""
    return {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in KINDS}


def test_containers_of_a_pod_share_network_ipc_and_name_but_not_processes(pod: Pod) -> None:
    one, two = (namespaces(pod.run_idle(name)) for name in ("one", "two"))
    for kind in ("net", "ipc", "uts"):
        assert one[kind] == two[kind]
    for kind in ("pid", "mnt"):
        assert one[kind] != two[kind]


@pytest.mark.needs(SHARED_KERNEL)
def test_a_pod_shares_no_namespace_with_the_host(pod: Pod) -> None:
    inside, host = namespaces(pod.run_idle()), host_namespaces()
    assert not [kind for kind in KINDS if inside[kind] == host[kind]]


def test_containers_reach_each_other_over_the_loopback(pod: Pod) -> None:
    pod.run(["sh", "-c", "mkdir /www; echo hello > /www/index.html; httpd -f -p 127.0.0.1:8080 -h /www"], "server")
    client = pod.run_idle("client")
    assert client.sh("until wget -qO- http://127.0.0.1:8080/ 2>/dev/null; do :; done") == "hello\n"


@pytest.mark.needs(MESSAGE_QUEUES)
def test_containers_share_message_queues_and_memory(pod: Pod) -> None:
    one, two = pod.run_idle("one"), pod.run_idle("two")
    one.sh("touch /dev/mqueue/queue; echo shared > /dev/shm/file")
    assert two.sh("ls /dev/mqueue; cat /dev/shm/file") == "queue\nshared\n"
    assert not os.path.exists("/dev/shm/file")


def test_shared_memory_has_64_mebibytes(pod: Pod) -> None:
    container = pod.run_idle()
    assert container.sh("df -k /dev/shm | tail -n 1").split()[1] == "65536"
    assert container.exec("dd", "if=/dev/zero", "of=/dev/shm/big", "bs=1M", "count=70").exit_code == 1


def test_first_process_is_the_container_s_own(pod: Pod) -> None:
    container = pod.run(["sleep", "3602"])
    first = "tr '\\0' ' ' < /proc/1/cmdline"
    eventually(lambda: container.sh(first).strip(), "the first process", until=lambda seen: seen == "sleep 3602")
    listed = container.sh("ls /proc").split()
    assert len([name for name in listed if name.isdigit()]) <= 3


@pytest.mark.needs(SHARED_PID)
def test_shared_processes(node: Node) -> None:
    pod = node.pod(pid_mode="pod")
    one, two = pod.run(["sleep", "3603"], "one"), pod.run(["sleep", "3604"], "two")
    assert namespaces(one)["pid"] == namespaces(two)["pid"]
    if node.engine.can(SHARED_KERNEL):  # another kernel gives its own namespaces the same numbers
        assert namespaces(one)["pid"] != host_namespaces()["pid"]
    look = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done"
    eventually(lambda: one.sh(look), "the other's process", until=lambda seen: "sleep 3604" in seen)
    one.sh("kill -9 $(pidof sleep | tr ' ' '\\n' | while read p; do grep -q 3604 /proc/$p/cmdline && echo $p; done)")
    assert two.wait().exit_code == 137
    assert one.running()
    assert pod.ready


@pytest.mark.needs(SHARED_PID)
def test_one_container_s_end_leaves_the_other_with_shared_processes(node: Node) -> None:
    pod = node.pod(pid_mode="pod")
    one, two = pod.run_idle("one"), pod.run(["sh", "-c", "sleep 3605 & sleep 3606 & wait"], "two")
    two.stop()
    assert two.status().exit_code == 137
    assert one.running()
    assert "sleep 360" not in one.sh("ps -o args").replace("sleep 3600", "")


@pytest.mark.needs(HOST_PID)
def test_processes_of_the_host(node: Node) -> None:
    container = node.pod(pid_mode="host").run_idle()
    assert namespaces(container)["pid"] == host_namespaces()["pid"]
    assert f"/proc/{os.getpid()}" in container.sh("echo /proc/*").split()  # `ls` minds processes that end meanwhile


@pytest.mark.needs(HOST_NETWORK, SHARED_KERNEL)
def test_network_of_the_host(node: Node) -> None:
    container = node.pod(host_network=True).run_idle()
    seen = namespaces(container)
    assert seen["net"] == host_namespaces()["net"]
    assert seen["ipc"] != host_namespaces()["ipc"]
    assert container.sh("hostname").strip() == socket.gethostname()


@pytest.mark.needs(SHARED_KERNEL)
@pytest.mark.needs(HOST_IPC)
def test_ipc_of_the_host(node: Node) -> None:
    container = node.pod(host_ipc=True).run_idle()
    assert namespaces(container)["ipc"] == host_namespaces()["ipc"]


@pytest.mark.needs(SHARED_KERNEL)
def test_two_pods_share_nothing(node: Node) -> None:
    one, two = (namespaces(node.pod().run_idle()) for _ in range(2))
    assert all(one[kind] != two[kind] for kind in KINDS)
