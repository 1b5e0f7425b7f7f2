"""Pods and containers come, run, end and go, and CRI tells the truth about each step."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from kuasar.api.gen.cri.v1.container_pb2 import ContainerState
from kuasar.api.gen.cri.v1.pod_pb2 import PodSandboxState
from kuasar.cli.cri import CriError
from tests.e2e.harness import Node, Pod


def test_pod_states(node: Node) -> None:
    pod = node.pod("states", labels={"app": "states"}, annotations={"note": "yes"})
    status = pod.status()
    assert status.state == PodSandboxState.SANDBOX_READY
    assert status.metadata.name == "states"
    assert dict(status.labels) == {"app": "states"}
    assert dict(status.annotations) == {"note": "yes"}
    assert [found.id for found in node.cri.list_pods(labels={"app": "states"})] == [pod.id]
    pod.stop()
    assert pod.status().state == PodSandboxState.SANDBOX_NOTREADY
    pod.stop()  # stopping what is stopped succeeds
    pod.remove()
    with pytest.raises(CriError) as refused:
        pod.status()
    assert refused.value.code == grpc.StatusCode.NOT_FOUND
    pod.remove()  # removing what is gone succeeds


def test_container_states(pod: Pod) -> None:
    container = pod.create(pod.engine.programs.idle())
    assert container.status().state == ContainerState.CONTAINER_CREATED
    container.start()
    status = container.status()
    assert status.state == ContainerState.CONTAINER_RUNNING
    assert status.created_at <= status.started_at
    container.stop()
    status = container.status()
    assert status.state == ContainerState.CONTAINER_EXITED
    assert status.exit_code == 137
    assert status.started_at <= status.finished_at
    container.stop()  # stopping what is stopped succeeds
    container.remove()
    with pytest.raises(CriError) as refused:
        container.status()
    assert refused.value.code == grpc.StatusCode.NOT_FOUND
    container.remove()  # removing what is gone succeeds
    assert pod.ready


def test_pods_are_made_and_removed_at_the_same_time(node: Node) -> None:
    def turn(number: int) -> int:
        pod = node.pod(f"parallel-{number}")
        code = pod.run(pod.engine.programs.exit(number)).wait(30).exit_code
        pod.remove()
        return code

    count = node.engine.pods_at_once
    with ThreadPoolExecutor(count) as pool:
        assert list(pool.map(turn, range(count))) == list(range(count))


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_exit_code(pod: Pod, code: int) -> None:
    container = pod.run(pod.engine.programs.exit(code))
    status = container.wait()
    assert status.exit_code == code
    assert status.reason == ("Completed" if code == 0 else "Error")
    assert pod.ready  # the pod outlives its containers


def test_container_that_is_never_started_can_be_removed(pod: Pod) -> None:
    container = pod.create(pod.engine.programs.idle())
    container.remove()
    assert pod.cri.list_containers(pod=pod.id) == []
