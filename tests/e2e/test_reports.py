"""What the stack says of itself: events, verbose status."""

from __future__ import annotations

import json
import os

import pytest

from kuasar.api.gen.cri.v1.common_pb2 import LinuxContainerResources
from tests.e2e.engines import EXEC, OURS, PAUSE, SHELL
from tests.e2e.events import subscribed
from tests.e2e.harness import Node, Pod


def test_events_of_a_container(pod: Pod) -> None:
    with subscribed(pod.stack) as events:
        container = pod.create(pod.engine.programs.exit(7))
        container.start()
        assert container.wait().exit_code == 7
        container.remove()
        events.wait_for("/tasks/delete", container.id)
    create = events.wait_for("/tasks/create", container.id)
    start = events.wait_for("/tasks/start", container.id)
    end = events.wait_for("/tasks/exit", container.id)
    assert create["pid"] == start["pid"] == end["pid"] > 0
    assert end["exit_status"] == 7
    assert end["id"] == container.id
    order = [event.topic for event in events.of(container.id) if event.topic.startswith("/tasks/")]
    assert order == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


@pytest.mark.needs(EXEC, SHELL)
def test_events_of_a_command(pod: Pod) -> None:
    container = pod.run_idle()
    with subscribed(pod.stack) as events:
        assert container.exec("sh", "-c", "exit 9").exit_code == 9
        added = events.wait_for("/tasks/exec-added", container.id)
        started = events.wait_for("/tasks/exec-started", container.id, exec_id=added["exec_id"])
        end = events.wait_for("/tasks/exit", container.id, id=added["exec_id"])
    assert end["exit_status"] == 9
    assert end["pid"] == started["pid"]


@pytest.mark.needs(PAUSE)
def test_events_of_a_pause(pod: Pod) -> None:
    container = pod.run_idle()
    with subscribed(pod.stack) as events:
        pod.stack.ctr("tasks", "pause", container.id)
        events.wait_for("/tasks/paused", container.id)
        pod.stack.ctr("tasks", "resume", container.id)
        events.wait_for("/tasks/resumed", container.id)


@pytest.mark.needs(SHELL)
def test_event_of_a_memory_shortage(pod: Pod) -> None:
    with subscribed(pod.stack) as events:
        limits = LinuxContainerResources(memory_limit_in_bytes=64 << 20)
        container = pod.run(pod.engine.programs.hog(), resources=limits)
        events.wait_for("/tasks/oom", container.id)
        assert events.wait_for("/tasks/exit", container.id)["exit_status"] == 137


def test_verbose_status_of_a_container(pod: Pod) -> None:
    container = pod.run_idle()
    info = json.loads(pod.cri.status(container.id, verbose=True).info["info"])
    assert info["pid"] > 0
    assert info["sandboxID"] == pod.id


def test_verbose_status_of_a_pod(node: Node) -> None:
    info = dict(node.cri.pod_status(node.pod("verbose").id, verbose=True).info)
    # containerd's own sandboxer says it in one JSON text
    pid = json.loads(info["info"])["pid"] if "info" in info else int(info["pid"])
    assert os.path.exists(f"/proc/{pid}")


@pytest.mark.needs(OURS)
def test_verbose_status_tells_where_to_look(node: Node) -> None:
    """What the gateway itself answers: state, engine, log, and where the time of the start went."""
    pod = node.pod("verbose")
    info = dict(node.gateway().status(pod.id, node.engine.handler, verbose=True).info)
    assert info["state"] == "ready"
    assert info["sandboxer"] == node.engine.handler
    assert any(value.endswith(f"{pod.id}.log") for value in info.values())
    assert any("phases" in key for key in info)


def test_the_pods_of_a_node_are_listed(node: Node) -> None:
    pods = {node.pod(labels={"app": "listed"}).id for _ in range(3)}
    listed = node.cri.list_pods(labels={"app": "listed"})
    assert {pod.id for pod in listed} == pods
    assert {pod.runtime_handler for pod in listed} == {node.engine.handler}
