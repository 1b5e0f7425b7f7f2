"""Containers made through the Task API itself, with a bundle of our own: what OCI can say and CRI cannot."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from kuasar.api.gen.containerd.task.v3 import task_pb2 as pb
from kuasar.api.gen.containerd.types import mount_pb2, task_pb2
from tests.deadline import eventually
from tests.e2e import cgroups
from tests.e2e.engines import EXEC, OURS, PAUSE, SHARED_KERNEL, SHELL, UPDATE
from tests.e2e.gateway import NAMESPACE, TIMEOUT, Gateway
from tests.e2e.harness import Node

pytestmark = pytest.mark.needs(OURS, SHELL, SHARED_KERNEL)

POD, ID = "direct-task", "direct-container"


class Direct:
    """One container in one sandbox, without containerd."""

    def __init__(self, gateway: Gateway, directory: Path, cgroup: str) -> None:
        self.gateway = gateway
        self.directory = directory
        self.cgroup = cgroup
        self.output: dict[str, bytes] = {}
        self._readers: list[threading.Thread] = []

    def call(self, name: str, request: Any, timeout: float = TIMEOUT) -> Any:
        """A method of the Task service."""
        return getattr(self.gateway.task, name)(request, timeout=timeout, metadata=NAMESPACE)

    def refusal(self, name: str, request: Any, timeout: float = TIMEOUT) -> grpc.StatusCode:
        """The code with which a call fails."""
        with pytest.raises(grpc.RpcError) as caught:
            self.call(name, request, timeout)
        return cast("grpc.Call", caught.value).code()  # what a unary call raises is both

    def create(self, script: str, *, linux: dict[str, Any] | None = None, **process: Any) -> pb.CreateTaskResponse:
        """Creates the container with `script` for its shell."""
        rootfs = self.directory / "image"
        (rootfs / "bin").mkdir(parents=True)
        shutil.copy("/usr/bin/busybox", rootfs / "bin" / "busybox")
        (rootfs / "bin" / "sh").symlink_to("busybox")
        bundle = self.directory / "bundle"
        (bundle / "rootfs").mkdir(parents=True)
        (bundle / "sandbox").write_text(POD)
        spec = {
            "ociVersion": "1.0.2",
            "process": {
                "args": ["/bin/sh", "-c", script],
                "cwd": "/",
                "env": ["PATH=/bin"],
                "user": {"uid": 0, "gid": 0},
                **process,
            },
            "root": {"path": "rootfs"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {
                "namespaces": [{"type": "mount"}, {"type": "pid"}],
                "cgroupsPath": f"{self.cgroup}/{ID}",
                **(linux or {}),
            },
        }
        (bundle / "config.json").write_text(json.dumps(spec))
        request = pb.CreateTaskRequest(
            id=ID,
            bundle=str(bundle),
            rootfs=[mount_pb2.Mount(type="bind", source=str(rootfs), options=["rbind", "rw"])],
            stdout=self.fifo("stdout"),
            stderr=self.fifo("stderr"),
        )
        answer: pb.CreateTaskResponse = self.call("Create", request)
        return answer

    def fifo(self, name: str) -> str:
        """A FIFO that is read to its end by a thread, as containerd does."""
        path = str(self.directory / name)
        os.mkfifo(path)

        def read() -> None:
            with open(path, "rb") as file:
                self.output[name] = file.read()

        self._readers.append(threading.Thread(target=read, daemon=True))
        self._readers[-1].start()
        return path

    def start(self) -> None:
        """Starts the container."""
        self.call("Start", pb.StartRequest(id=ID))

    def wait(self, exec_id: str = "") -> int:
        """Waits for an end and gives the exit code."""
        return int(self.call("Wait", pb.WaitRequest(id=ID, exec_id=exec_id)).exit_status)

    def run(self, script: str, **process: Any) -> bytes:
        """Runs `script` to its end and gives its output."""
        self.create(script, **process)
        self.start()
        code = self.wait()
        for reader in self._readers:
            reader.join(10)
        assert code == 0, (code, self.output)
        return self.output["stdout"]


@pytest.fixture
def direct(node: Node, tmp_path: Path) -> Iterator[Direct]:
    """A ready sandbox with a name of its own."""
    gateway, handler = node.gateway(), node.engine.handler
    gateway.create(POD, handler)
    try:
        gateway.start(POD, handler)
        yield Direct(gateway, tmp_path / "direct", node.stack.layout.cgroup_parent)
    finally:
        gateway.shutdown(POD, handler)


def test_resource_limits(direct: Direct) -> None:
    limits = [{"type": "RLIMIT_NOFILE", "soft": 321, "hard": 654}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]
    output = direct.run("ulimit -Sn; ulimit -Hn; ulimit -Sc", rlimits=limits)
    assert output.split() == [b"321", b"654", b"0"]


def test_umask(direct: Direct) -> None:
    assert direct.run("umask", user={"uid": 0, "gid": 0, "umask": 0o027}) == b"0027\n"


def test_score_for_the_kernel_s_choice_of_victims(direct: Direct) -> None:
    assert direct.run("read x < /proc/self/oom_score_adj; echo $x", oomScoreAdj=777) == b"777\n"


def test_life_of_a_task(direct: Direct) -> None:
    def state() -> Any:
        return direct.call("State", pb.StateRequest(id=ID))

    pid = direct.create("echo out; echo err >&2; exit 5").pid
    assert (state().status, state().pid) == (task_pb2.Status.CREATED, pid)
    assert state().bundle == str(direct.directory / "bundle")
    assert direct.call("Connect", pb.ConnectRequest(id=ID)).task_pid == pid
    again = pb.CreateTaskRequest(id=ID, bundle=str(direct.directory / "bundle"))
    assert direct.refusal("Create", again) == grpc.StatusCode.ALREADY_EXISTS
    assert direct.call("Start", pb.StartRequest(id=ID)).pid == pid
    assert direct.wait() == 5
    assert direct.wait() == 5  # for whoever asks later
    assert (state().status, state().exit_status) == (task_pb2.Status.STOPPED, 5)
    answer = direct.call("Delete", pb.DeleteRequest(id=ID))
    assert (answer.pid, answer.exit_status) == (pid, 5)
    for name, request in (
        ("Delete", pb.DeleteRequest(id=ID)),
        ("State", pb.StateRequest(id=ID)),
        ("Wait", pb.WaitRequest(id=ID)),
        ("Start", pb.StartRequest(id=ID)),
    ):
        assert direct.refusal(name, request) == grpc.StatusCode.NOT_FOUND


def test_signals(direct: Direct) -> None:
    direct.create("trap 'echo one' USR1; trap 'exit 9' TERM; echo ready > /ready; while :; do :; done")
    direct.start()
    ready = direct.directory / "image" / "ready"
    eventually(ready.exists, "the traps are set")
    direct.call("Kill", pb.KillRequest(id=ID, signal=10))
    direct.call("Kill", pb.KillRequest(id=ID, signal=15))
    assert direct.wait() == 9
    direct.call("Delete", pb.DeleteRequest(id=ID))


def test_kill_all(direct: Direct) -> None:
    direct.create("/bin/busybox sleep 3607 & /bin/busybox sleep 3608 & wait")
    direct.start()
    eventually(
        lambda: len(direct.call("Pids", pb.PidsRequest(id=ID)).processes), "three processes", until=lambda n: n == 3
    )
    direct.call("Kill", pb.KillRequest(id=ID, signal=9, all=True))
    assert direct.wait() == 137
    direct.call("Delete", pb.DeleteRequest(id=ID))


@pytest.mark.needs(EXEC)
def test_another_process(direct: Direct) -> None:
    direct.create("/bin/busybox sleep 3609")
    direct.start()
    process = {"args": ["/bin/sh", "-c", "echo more; exit 3"], "cwd": "/", "env": [], "user": {"uid": 0, "gid": 0}}
    spec = AnyMessage(type_url="types.containerd.io/opencontainers/runtime-spec/1/Process")
    spec.value = json.dumps(process).encode()
    request = pb.ExecProcessRequest(id=ID, exec_id="more", spec=spec, stdout=direct.fifo("more"))
    direct.call("Exec", request)
    assert direct.refusal("Exec", request) == grpc.StatusCode.ALREADY_EXISTS
    pid = direct.call("Start", pb.StartRequest(id=ID, exec_id="more")).pid
    assert direct.wait("more") == 3
    state = direct.call("State", pb.StateRequest(id=ID, exec_id="more"))
    assert (state.status, state.exit_status, state.exec_id) == (task_pb2.Status.STOPPED, 3, "more")
    answer = direct.call("Delete", pb.DeleteRequest(id=ID, exec_id="more"))
    assert (answer.pid, answer.exit_status) == (pid, 3)
    eventually(lambda: direct.output.get("more"), "its output", until=lambda seen: seen == b"more\n")
    direct.call("Kill", pb.KillRequest(id=ID, signal=9))
    assert direct.wait() == 137


def test_statistics_have_the_type_of_the_node(direct: Direct) -> None:
    direct.create("/bin/busybox sleep 3610")
    direct.start()
    stats = direct.call("Stats", pb.StatsRequest(id=ID)).stats
    assert stats.type_url == (
        "io.containerd.cgroups.v2.Metrics" if cgroups.UNIFIED else "io.containerd.cgroups.v1.Metrics"
    )


@pytest.mark.needs(PAUSE, UPDATE)
def test_pause_resume_and_update(direct: Direct) -> None:
    pid = direct.create("/bin/busybox sleep 3611").pid
    direct.start()
    direct.call("Pause", pb.PauseRequest(id=ID))
    assert direct.call("State", pb.StateRequest(id=ID)).status == task_pb2.Status.PAUSED
    direct.call("Resume", pb.ResumeRequest(id=ID))
    assert direct.call("State", pb.StateRequest(id=ID)).status == task_pb2.Status.RUNNING
    resources = AnyMessage(type_url="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources")
    resources.value = json.dumps({"memory": {"limit": 77 << 20}}).encode()
    direct.call("Update", pb.UpdateTaskRequest(id=ID, resources=resources))
    assert cgroups.read(pid, "memory.limit") == str(77 << 20)
    resources.value = b"no json"
    refusal = direct.refusal("Update", pb.UpdateTaskRequest(id=ID, resources=resources))
    assert refusal == grpc.StatusCode.INVALID_ARGUMENT
    direct.call("Kill", pb.KillRequest(id=ID, signal=9))
    assert direct.wait() == 137


def test_wait_honours_the_caller_s_deadline(direct: Direct) -> None:
    direct.create("/bin/busybox sleep 3612")
    direct.start()
    assert direct.refusal("Wait", pb.WaitRequest(id=ID), timeout=0.3) == grpc.StatusCode.DEADLINE_EXCEEDED
    assert direct.call("State", pb.StateRequest(id=ID)).status == task_pb2.Status.RUNNING


def test_shutting_the_sandbox_down_ends_a_wait(node: Node, direct: Direct) -> None:
    direct.create("/bin/busybox sleep 3613")
    direct.start()
    codes: list[int] = []
    waiter = threading.Thread(target=lambda: codes.append(direct.wait()))
    waiter.start()
    direct.gateway.stop(POD, node.engine.handler)
    waiter.join(TIMEOUT)
    assert codes
    assert codes[0] in (137, 143)
