"""Machines whose agents are reached by the vsock of a daemon (vhost-device-vsock): the same pods over another channel.

Each of these machines boots, as QEMU keeps no such device in a template, so there are few of them.
"""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import pytest

from kuasar.api.gen.cri.v1.common_pb2 import LinuxContainerResources
from tests import needs
from tests.deadline import eventually
from tests.e2e.engines import OWN_KERNEL
from tests.e2e.harness import Node, Pod
from tests.e2e.stack import VSOCK_HANDLER, sandbox_directory, supervisorctl
from tests.e2e.test_machines import info

pytestmark = [pytest.mark.needs(OWN_KERNEL), needs.VSOCK_DAEMON]


def process_of(pod: Pod, program: str) -> int:
    """The process of that name that writes to the pod's log."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                words = Path(f"/proc/{name}/cmdline").read_bytes()
                output = os.readlink(f"/proc/{name}/fd/1")
            except OSError:
                continue
            if program.encode() in words.split(b"\0")[0] and pod.id in output:
                return int(name)
    raise AssertionError(f"no {program} of pod {pod.id}")


def test_a_pods_life_over_the_vsock_of_a_daemon(node: Node) -> None:
    limits = LinuxContainerResources(memory_limit_in_bytes=320 << 20, cpu_quota=200_000, cpu_period=100_000)
    pod = node.pod(handler=VSOCK_HANDLER, resources=limits)
    facts = info(pod)
    assert facts["channel"] == "vhost-user-vsock"
    assert facts["start"] == "boot: QEMU cannot keep a vhost-user-vsock in a template"
    container = pod.run_idle()
    assert container.sh("nproc").strip() == "2"  # plugged memory can be seen by the daemon, too
    with container.exec_stream("cat", stdin=True) as stream:
        stream.send_stdin(b"over the vsock\n")
        stream.read_until(b"over the vsock\n")
        stream.close_stdin()
        assert stream.wait().exit_code == 0
    command, expected = node.engine.programs.flood()
    flood = pod.run(command, "flood")
    assert flood.wait(timeout=60).exit_code == 0
    written = eventually(flood.log, "every byte", until=lambda seen: len(seen) >= len(expected))
    assert hashlib.sha256(written).digest() == hashlib.sha256(expected).digest()
    assert pod.run(node.engine.programs.exit(7), "seven").wait().exit_code == 7
    daemon = Path(f"/proc/{process_of(pod, 'vhost-device-vsock')}/status").read_text()
    assert int(daemon.split("Uid:")[1].split()[0]) == os.stat(f"/proc/{facts['pid']}").st_uid != 0
    pod.remove()
    assert not os.path.exists(sandbox_directory(node.stack, pod.id))


def test_deaths_around_the_vsock_of_a_daemon(node: Node) -> None:
    pod = node.pod(handler=VSOCK_HANDLER)
    container = pod.run_idle()
    worker = node.stack.pid(f"sandbox:{pod.id}")
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: node.stack.pid(f"sandbox:{pod.id}"), "a new worker", until=lambda pid: pid not in (0, worker))
    assert container.exec("echo", "alive").stdout == b"alive\n"
    assert supervisorctl(node.stack, "status", f"sandbox:{pod.id}")[0] == 0
    os.kill(process_of(pod, "vhost-device-vsock"), signal.SIGKILL)
    eventually(lambda: not pod.ready, "the pod is not ready any more")
    assert "the vsock of the machine (vhost-device-vsock) died" in info(pod)["reason"]
    assert container.wait().exit_code == 137
