"""Pods through the real containerd are seen in the metrics; their own statistics where Kubernetes looks for them."""

from __future__ import annotations

import grpc
import pytest

from kuasar.api.gen.containerd.cgroups.v1 import metrics_pb2 as v1
from kuasar.api.gen.containerd.cgroups.v2 import metrics_pb2 as v2
from kuasar.api.gen.containerd.sandbox.v1 import controller_pb2
from kuasar.api.gen.cri.v1.common_pb2 import LinuxContainerResources
from tests import scraping
from tests.deadline import eventually
from tests.e2e import stack as session
from tests.e2e.engines import EXEC, OURS, SHARED_KERNEL, SHELL, STATS
from tests.e2e.gateway import NAMESPACE, TIMEOUT
from tests.e2e.harness import Node
from tests.scraping import Scrape

pytestmark = pytest.mark.needs(OURS)
BYTES = 100_000


def scrape() -> Scrape:
    return scraping.scrape(session.METRICS)


def grown(before: Scrape, after: Scrape, name: str, **labels: str) -> float:
    """By how much a counter has grown, over all samples with these labels."""
    return after.total(name, **labels) - before.total(name, **labels)


@pytest.mark.needs(EXEC, SHELL)
def test_what_pods_do_is_counted(node: Node) -> None:
    engine = node.engine.handler.removeprefix("kuasar-")
    before = scrape()
    pod = node.pod()
    container = pod.run_idle()
    assert len(container.sh(f"head -c {BYTES} /dev/zero | tr '\\0' x")) == BYTES
    during = scrape()
    assert grown(before, during, "kuasar_sandbox_start_seconds_count", engine=engine) == 1
    assert grown(before, during, "kuasar_sandbox_start_phase_seconds_count", engine=engine, phase="agent") == 1
    assert grown(before, during, "kuasar_sandboxes", engine=engine, state="ready") == 1
    assert grown(before, during, "kuasar_containers", engine=engine) == 1
    for method in ("Controller.Create", "Controller.Start", "Task.Create", "Task.Exec"):
        assert grown(before, during, "kuasar_rpc_seconds_count", method=method) == 1, method
    assert grown(before, during, "kuasar_processes", process="worker") == 1
    assert grown(before, during, "kuasar_containerd_events_delivered_total") >= 4
    assert grown(before, during, "kuasar_stdio_bytes_total", engine=engine, stream="stdout") == BYTES
    paths = {
        path
        for path in ("fork", "exec", "clone", "boot")
        if grown(before, during, "kuasar_sandbox_start_seconds_count", engine=engine, path=path)
    }
    assert len(paths) == 1
    hits = grown(before, during, "kuasar_template_starts_total", engine=engine, result="hit")
    assert hits == (1 if paths == {"clone"} else 0)

    container.remove()
    pod.remove()
    after = scrape()
    assert grown(before, after, "kuasar_sandboxes") == 0
    assert grown(before, after, "kuasar_sandbox_ends_total", engine=engine, how="stopped") == 1
    assert grown(before, after, "kuasar_sandbox_ends_total", how="died") == 0
    eventually(lambda: grown(before, scrape(), "kuasar_bus_links"), "the link is gone", until=lambda links: links <= 0)


@pytest.mark.needs(SHELL)
def test_a_memory_shortage_is_counted(node: Node) -> None:
    before = scrape()
    limits = LinuxContainerResources(memory_limit_in_bytes=64 << 20)
    assert node.pod().run(node.engine.programs.hog(), resources=limits).wait().exit_code == 137
    eventually(
        lambda: grown(before, scrape(), "kuasar_container_oom_kills_total"), "it is counted", until=lambda n: n == 1
    )


def test_what_a_client_does_wrong_is_counted_by_kind(node: Node) -> None:
    before = scrape()
    with pytest.raises(grpc.RpcError):
        node.gateway().status("no-such-pod", node.engine.handler)
    wrong = {"method": "Controller.Status", "error": "not_found"}
    assert grown(before, scrape(), "kuasar_rpc_errors_total", **wrong) == 1


@pytest.mark.needs(STATS, SHARED_KERNEL)
def test_a_pod_s_own_statistics_include_its_containers(node: Node) -> None:
    """Controller.Metrics, as the kubelet gets it by way of containerd."""
    pod = node.pod()
    request = controller_pb2.ControllerMetricsRequest(sandbox_id=pod.id)

    def used() -> tuple[int, int]:
        answer = node.gateway().controller.Metrics(request, timeout=TIMEOUT, metadata=NAMESPACE)
        assert answer.metrics.id == pod.id
        assert answer.metrics.timestamp.seconds > 0
        data = answer.metrics.data
        if data.type_url == "io.containerd.cgroups.v2.Metrics":
            unified = v2.Metrics.FromString(data.value)
            return unified.memory.usage, unified.cpu.usage_usec * 1000
        assert data.type_url == "io.containerd.cgroups.v1.Metrics"
        classic = v1.Metrics.FromString(data.value)
        return classic.memory.usage.usage, classic.cpu.usage.total

    memory, cpu = used()
    assert memory > 0
    assert cpu > 0
    pod.run(node.engine.programs.spin())
    eventually(used, "its container's work counts", until=lambda now: now[1] > cpu + 100_000_000)
