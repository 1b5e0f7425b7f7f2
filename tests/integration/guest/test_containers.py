"""Containers by crun in the guest's version 2 cgroups."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kuasar.agent.protocol import Event
from tests.integration.guest.conftest import needs_qemu
from tests.integration.guest.containers import answer, asking, container, run_to_end
from tests.integration.guest.machine import AgentConnection, Machine

pytestmark = needs_qemu

SLEEPER = "import signal; signal.pause()"


@contextmanager
def running(agent: AgentConnection, name: str, code: str) -> Iterator[dict[str, str]]:
    """A container that runs, killed and deleted with the block."""
    named = {"id": name}
    agent.call("task.create", container(name, code))
    agent.call("task.start", named)
    try:
        yield named
    finally:
        agent.ask("task.kill", {**named, "signal": 9, "all": True})
        agent.call("task.wait", named)
        agent.call("task.delete", named)


def topics(events: list[Event], name: str) -> list[str]:
    return [event.topic for event in events if event.body["container_id"] == name]


def test_a_container_that_exceeds_its_memory_is_killed_and_that_is_told_first(agent: AgentConnection) -> None:
    assert run_to_end(agent, container("hog", "x = b'x' * (64 << 20)")) == 128 + 9
    while "task.exit" not in topics(agent.events, "hog"):
        agent.call("info")
    assert topics(agent.events, "hog") == ["task.oom", "task.exit"]


def test_a_paused_container_stands_still_and_goes_on(agent: AgentConnection) -> None:
    with running(agent, "still", SLEEPER) as named:
        agent.call("task.pause", named)
        assert agent.call("task.state", named)["status"] == "paused"
        agent.call("task.resume", named)
        assert agent.call("task.state", named)["status"] == "running"


def test_a_paused_container_can_be_killed(agent: AgentConnection) -> None:
    with running(agent, "frozen", SLEEPER) as named:
        agent.call("task.pause", named)
        agent.call("task.kill", {**named, "signal": 9})
        assert agent.call("task.wait", named)["exit_status"] == 128 + 9


def test_limits_are_changed_and_counted(agent: AgentConnection) -> None:
    with running(agent, "limits", SLEEPER) as named:
        memory = {"memory": {"limit": 48 << 20}, "pids": {"limit": 30}, "cpu": {"quota": 50000, "period": 100000}}
        agent.call("task.update", {**named, "resources": memory})
        stats = agent.call("task.stats", named)["stats"]
        assert (stats["version"], stats["memory"]["usage_limit"]) == (2, 48 << 20)
        assert stats["pids"]["limit"] in (20, 30)  # crun 1.8.1 leaves the processes' limit as it is
        assert stats["memory"]["usage"] > 0


def test_a_module_that_a_container_needs_is_loaded_when_the_kernel_asks_for_it(
    machine: Machine, agent: AgentConnection
) -> None:
    packet_filter = "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12).fileno() > 0"
    loaded = '"nfnetlink" in [line.split()[0] for line in text("/proc/modules").splitlines()]'
    assert answer(machine, agent, asking("module", f"[{loaded}, {packet_filter}, {loaded}]")) == [False, True, True]
