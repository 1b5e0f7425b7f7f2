"""The admin service of a real gateway with real workers."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from kuasar.api.gen.kuasar.admin.v1 import admin_pb2 as pb
from kuasar.core.records import seal, unseal
from tests import needs
from tests.integration.gateway.node import NAMESPACE, SECONDS, Node, running

pytestmark = needs.ROOT


@pytest.fixture
def node() -> Iterator[Node]:
    with running() as made:
        yield made


def listed(node: Node) -> dict[str, pb.Sandbox]:
    answer = node.admin.ListSandboxes(pb.ListSandboxesRequest(), timeout=SECONDS, wait_for_ready=True)
    assert not answer.supervisord_error
    return {sandbox.id: sandbox for sandbox in answer.sandboxes}


def copy_record(node: Node, original: str, name: str) -> None:
    """A sandbox that nobody started, as far as the directories tell."""
    source, target = Path(node.config.sandboxes_dir, original), Path(node.config.sandboxes_dir, name)
    target.mkdir()
    record = unseal((source / "sandbox.msgpack").read_bytes()) | {"id": name}
    (target / "sandbox.msgpack").write_bytes(seal(record))


def test_what_there_is_and_how_it_goes(node: Node) -> None:
    assert listed(node) == {}
    node.create("aaa1", "web")
    found = listed(node)["aaa1"]
    assert (found.state, found.worker, found.machine_pid, found.started_at) == ("created", "alive", 0, 0)
    node.start("aaa1")
    found = listed(node)["aaa1"]
    assert (found.state, found.namespace, found.engine, found.sandboxer) == ("ready", NAMESPACE, "runc", "kuasar-runc")
    assert (found.pod_name, found.pod_namespace, found.pod_uid) == ("web", "default", "uid-web")
    assert (found.generation, found.restarts) == (1, 0)
    assert found.created_at < found.started_at <= time.time_ns()
    assert "launch" in [phase.name for phase in found.phases]
    assert Path(f"/proc/{found.machine_pid}").exists()
    assert "aaa1" in Path(f"/proc/{found.worker_pid}/cmdline").read_text()

    answer = node.admin.GetSandbox(pb.GetSandboxRequest(id="aaa1"), timeout=SECONDS)
    assert answer.sandbox.machine_pid == found.machine_pid
    assert answer.info["worker_pid"] == str(found.worker_pid)
    assert "launch=" in answer.info["phases"]
    for wanted, code in (("bbb", grpc.StatusCode.NOT_FOUND), ("../x", grpc.StatusCode.INVALID_ARGUMENT)):
        with pytest.raises(grpc.RpcError) as caught:
            node.admin.GetSandbox(pb.GetSandboxRequest(id=wanted), timeout=SECONDS)
        assert caught.value.code() is code

    node.remove("aaa1")
    assert listed(node) == {}


def test_the_list_asks_no_worker(node: Node) -> None:
    """Two hundred sandboxes, and the workers that there are do not run: the answer comes all the same."""
    node.run("aaa1", "web")
    worker = listed(node)["aaa1"].worker_pid
    for number in range(199):
        copy_record(node, "aaa1", f"copy{number}")
    os.kill(worker, signal.SIGSTOP)
    try:
        found = listed(node)
        with pytest.raises(grpc.RpcError) as caught:
            node.admin.GetSandbox(pb.GetSandboxRequest(id="aaa1"), timeout=1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    finally:
        os.kill(worker, signal.SIGCONT)
    assert len(found) == 200
    assert found["copy7"].worker == "expected"
    assert found["copy7"].restarts == -1
    for number in range(199):
        shutil.rmtree(f"{node.config.sandboxes_dir}/copy{number}")


def test_the_list_comes_also_when_supervisord_hangs(node: Node) -> None:
    node.run("aaa1", "web")
    os.kill(node.daemon.process.pid, signal.SIGSTOP)
    try:
        answer = node.admin.ListSandboxes(pb.ListSandboxesRequest(), timeout=SECONDS)
    finally:
        os.kill(node.daemon.process.pid, signal.SIGCONT)
    (found,) = answer.sandboxes
    assert (found.id, found.state, found.restarts) == ("aaa1", "ready", -1)
    assert "supervisord did not answer" in answer.supervisord_error


def test_a_record_that_cannot_be_read_is_shown(node: Node) -> None:
    Path(node.config.sandboxes_dir, "odd").mkdir()
    Path(node.config.sandboxes_dir, "odd", "sandbox.msgpack").write_bytes(b"\xc1")
    found = listed(node)["odd"]
    assert found.state == "damaged"
    assert "cannot be read" in found.reason
    shutil.rmtree(f"{node.config.sandboxes_dir}/odd")


def test_engines(node: Node) -> None:
    answer = node.admin.Engines(pb.EnginesRequest(), timeout=SECONDS, wait_for_ready=True)
    engines = {engine.name: engine for engine in answer.engines}
    assert set(engines) == {"gone", "runc", "wasmtime"}
    assert engines["runc"].usable, engines["runc"].reason
    assert engines["runc"].binary.endswith("/runc")
    assert engines["runc"].version[0].isdigit()
    assert "exec" in engines["runc"].capabilities
    assert not engines["gone"].usable
    assert "no-runc does not exist" in engines["gone"].reason


def test_a_watcher_sees_a_life(node: Node) -> None:
    watch = node.admin.Watch(pb.WatchRequest(id="aaa1"), timeout=SECONDS, wait_for_ready=True)
    assert next(watch).topic == "watching"
    node.run("bbb1", "other")
    node.run("aaa1", "web")
    seen = [next(watch) for _ in range(3)]
    assert [event.topic for event in seen] == ["worker.greeted", "sandbox.created", "sandbox.started"]
    assert {event.sandbox for event in seen} == {"aaa1"}
    os.kill(listed(node)["aaa1"].worker_pid, signal.SIGKILL)
    assert next(watch).topic == "worker.died"
    again = next(watch)
    assert (again.topic, again.data["generation"]) == ("worker.greeted", "2")
    assert listed(node)["aaa1"].generation == 2
    os.kill(listed(node)["aaa1"].machine_pid, signal.SIGKILL)
    ended = next(watch)
    assert ended.topic == "sandbox.exit"
    assert ended.data["reason"] == "the agent died"
    watch.cancel()
