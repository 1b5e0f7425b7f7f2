"""The metrics of a real gateway with real workers: what happens is counted, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from kuasar.api.gen.containerd.sandbox.v1 import controller_pb2 as pb
from kuasar.api.gen.kuasar.admin.v1 import admin_pb2
from tests import failpoints, needs
from tests.deadline import eventually
from tests.integration.gateway.node import METADATA, SECONDS, Node, running
from tests.scraping import Scrape, scrape

pytestmark = needs.ROOT
SETTINGS = """
[metrics]
listen = "unix:DIR/s/metrics.sock"
[debug]
failpoints = true
"""


@pytest.fixture
def node() -> Iterator[Node]:
    with running(SETTINGS) as made:
        made.admin.ListSandboxes(admin_pb2.ListSandboxesRequest(), timeout=SECONDS, wait_for_ready=True)
        eventually(lambda: os.path.exists(made.config.metrics.listen.removeprefix("unix:")), "the metrics")
        yield made


def seen(node: Node) -> Scrape:
    return scrape(node.config.metrics.listen)


def worker_pid(node: Node, sandbox: str) -> int:
    answer = node.admin.GetSandbox(admin_pb2.GetSandboxRequest(id=sandbox), timeout=SECONDS)
    return int(answer.sandbox.worker_pid)


def test_the_life_of_a_sandbox_is_counted(node: Node) -> None:
    before = seen(node)
    assert before.value("kuasar_supervisord_up") == 1
    assert before.total("kuasar_sandboxes") == 0
    assert before.total("kuasar_sandbox_start_seconds_count") == 0

    node.create("aaa1", "web")
    assert seen(node).value("kuasar_sandboxes", engine="runc", state="created") == 1
    node.start("aaa1")
    after = seen(node)
    assert after.value("kuasar_sandboxes", engine="runc", state="ready") == 1
    assert after.value("kuasar_bus_links", state="alive") == 1
    assert after.value("kuasar_workers", state="RUNNING") == 1
    fork = {"engine": "runc", "path": "fork"}
    assert after.value("kuasar_sandbox_start_seconds_count", **fork) == 1
    whole = after.value("kuasar_sandbox_start_seconds_sum", **fork)
    phases = {labels["phase"]: value for labels, value in after.matching("kuasar_sandbox_start_phase_seconds_sum")}
    assert {"files", "cgroup", "launch", "agent", "setup"} <= set(phases)
    assert 0 < sum(phases.values()) <= whole
    for method in ("Create", "Start"):
        assert after.value("kuasar_rpc_seconds_count", method=f"Controller.{method}") == 1
    assert after.value("kuasar_bus_requests_total") == before.value("kuasar_bus_requests_total") + 2

    for process in ("supervisord", "gateway", "zygote", "keeper", "worker", "agent"):
        assert after.value("kuasar_processes", process=process) == 1, process
        assert after.value("kuasar_process_open_fds", process=process) > 2
        resident = after.value("kuasar_process_resident_memory_bytes", process=process)
        assert 1 << 20 < after.value("kuasar_process_proportional_memory_bytes", process=process) <= resident
    assert after.value("process_open_fds") == after.value("kuasar_process_open_fds", process="gateway")

    node.remove("aaa1")
    gone = seen(node)
    assert gone.total("kuasar_sandboxes") == 0
    assert gone.value("kuasar_sandbox_ends_total", engine="runc", how="stopped") == 1
    assert gone.value("kuasar_sandbox_ends_total", engine="runc", how="died") == 0
    # What is known of a worker goes with its sandbox, or a gateway would grow with every pod.
    eventually(lambda: seen(node).total("kuasar_bus_links"), "the link is gone", until=lambda links: links == 0)


def test_failures_are_counted_by_kind(node: Node) -> None:
    failpoints.arm(node.config.failpoints_dir, "start.launch", "oserror:28")
    node.create("aaa1", "web")
    node.forget("aaa1")
    for sandbox in ("aaa1", "unknown"):
        with pytest.raises(grpc.RpcError):
            node.start(sandbox)
    with pytest.raises(grpc.RpcError):
        node.create("bbb1", "other", "none-such")
    node.forget("bbb1")
    after = seen(node)
    assert after.value("kuasar_sandbox_start_failures_total", engine="runc", error="backend_failed") == 1
    assert after.value("kuasar_rpc_errors_total", method="Controller.Start", error="backend_failed") == 1
    assert after.value("kuasar_rpc_errors_total", method="Controller.Start", error="not_found") == 1
    assert after.value("kuasar_rpc_errors_total", method="Controller.Create", error="invalid_argument") == 1
    assert after.value("kuasar_rpc_seconds_count", method="Controller.Start") == 2
    assert after.total("kuasar_sandbox_start_seconds_count") == 0


def test_deaths_are_told_from_ends(node: Node) -> None:
    node.run("aaa1", "web")
    os.kill(worker_pid(node, "aaa1"), signal.SIGKILL)
    restarts = {"name": "kuasar_worker_restarts_total", "engine": "runc"}
    after = eventually(lambda: seen(node), "a successor is counted", until=lambda now: now.value(**restarts) == 1)
    assert after.value("kuasar_worker_deaths_total") == 1
    assert after.total("kuasar_sandbox_ends_total") == 0
    answer = node.admin.GetSandbox(admin_pb2.GetSandboxRequest(id="aaa1"), timeout=SECONDS)
    os.kill(answer.sandbox.machine_pid, signal.SIGKILL)
    died = {"name": "kuasar_sandbox_ends_total", "engine": "runc", "how": "died"}
    after = eventually(lambda: seen(node), "the end is counted", until=lambda now: now.value(**died) == 1)
    assert after.value("kuasar_sandboxes", engine="runc", state="stopped") == 1
    assert after.value(**restarts) == 1


def test_what_a_worker_is_owed_is_shown(node: Node) -> None:
    """A worker that does not run: what waits for it is seen, and nobody waits for it in order to see."""
    node.run("aaa1", "web")
    worker = worker_pid(node, "aaa1")
    os.kill(worker, signal.SIGSTOP)
    try:
        waiting = node.controller.Status.future(
            pb.ControllerStatusRequest(sandbox_id="aaa1"), metadata=METADATA, timeout=SECONDS
        )
        after = eventually(lambda: seen(node), "it waits", until=lambda now: now.value("kuasar_bus_pending_requests"))
        assert after.value("kuasar_bus_pending_requests_max") == 1
        assert after.value("kuasar_rpc_in_flight") == 1
    finally:
        os.kill(worker, signal.SIGCONT)
    assert waiting.result().state == "SANDBOX_READY"
    assert seen(node).value("kuasar_bus_pending_requests") == 0


def reconcile(node: Node, *arguments: str) -> None:
    argv = [sys.executable, "-m", "kuasar.supervisor.reconcile", "--config", node.toml, "--confirm", "0.1"]
    subprocess.run([*argv, *arguments], check=True, stdout=subprocess.DEVNULL, timeout=SECONDS)


def test_leaks_are_shown_until_they_are_freed(node: Node) -> None:
    node.run("aaa1", "web")
    reconcile(node)
    after = seen(node)
    for kind in ("worker", "machine", "cgroup"):
        assert after.value("kuasar_objects_recorded", kind=kind) == 1, kind
        assert after.value("kuasar_objects_alive", kind=kind) == 1, kind
    assert after.total("kuasar_objects_leaked") == 0
    looked_at = after.value("kuasar_reconciler_last_look_timestamp_seconds")

    Path(node.config.sandboxes_dir, "lost1").mkdir()
    reconcile(node, "--dry-run")
    after = seen(node)
    assert after.value("kuasar_objects_leaked", kind="directory") == 1
    assert after.total("kuasar_reconciler_steps_total") == 0
    assert after.value("kuasar_reconciler_last_look_timestamp_seconds") > looked_at

    reconcile(node)
    after = seen(node)
    assert after.total("kuasar_objects_leaked") == 0
    assert after.value("kuasar_reconciler_steps_total", verb="remove", result="done") == 1


def test_without_supervisord_the_rest_is_there(node: Node) -> None:
    node.run("aaa1", "web")
    os.kill(node.daemon.process.pid, signal.SIGSTOP)
    try:
        after = seen(node)
    finally:
        os.kill(node.daemon.process.pid, signal.SIGCONT)
    assert after.value("kuasar_supervisord_up") == 0
    assert not list(after.matching("kuasar_workers"))
    assert after.value("kuasar_sandboxes", engine="runc", state="ready") == 1


def test_a_place_that_is_taken_keeps_nobody_from_serving() -> None:
    with running('[metrics]\nlisten = "unix:DIR/s"\n') as node:
        node.run("aaa1", "web")
        node.remove("aaa1")
        log = Path(f"{node.directory}/l/gateway.log")
        eventually(log.read_text, "the reason", until=lambda text: "there are no metrics" in text)
