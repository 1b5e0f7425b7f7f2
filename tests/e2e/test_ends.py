"""The end of a sandbox itself: of the agent that holds a pod's namespaces, of a machine's VMM and of its virtiofsd."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

import pytest

from scripts.stack import Stack
from tests import needs
from tests.deadline import eventually
from tests.e2e import leftovers
from tests.e2e.engines import OURS, OWN_KERNEL, RELAYED
from tests.e2e.events import subscribed
from tests.e2e.gateway import Gateway
from tests.e2e.harness import Node, Pod

FREED_SECONDS = 10.0
_HELD = ("process ", "cgroup ", "mount ")


def info(pod: Pod) -> dict[str, str]:
    """The verbose status of the sandbox, as our worker says it."""
    with Gateway(pod.stack.layout.gateway_socket) as gateway:
        return dict(gateway.status(pod.id, pod.engine.handler, verbose=True).info)


def virtiofsd_of(pod: Pod) -> int:
    """The server of the pod's share: the one that has its directory on its command line."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{name}/cmdline").read_bytes()
        except OSError:
            continue
        if b"virtiofsd" in words and f"/{pod.id}/".encode() in words:
            return int(name)
    raise AssertionError("no virtiofsd")


def held(stack: Stack, pod: Pod) -> set[str]:
    """What there is of ours for the pod, beside its worker, while containerd has not removed it: processes, cgroups,
    mounts in its directory."""
    ours = f"{stack.layout.run}/sandboxes/"
    worker = f"process {stack.pid(f'sandbox:{pod.id}')} "
    return {
        name
        for name in leftovers.present(stack)
        if name.startswith(_HELD)
        and not name.startswith(worker)
        and (not name.startswith("mount ") or name.startswith(f"mount {ours}"))
    }


@pytest.mark.needs(OURS)
def test_the_end_of_an_agent_or_a_vmm(node: Node) -> None:
    require_end(node, attrgetter("process"), "")


@pytest.mark.needs(OWN_KERNEL)
def test_the_end_of_virtiofsd(node: Node) -> None:
    require_end(node, virtiofsd_of, "virtiofsd")


def require_end(node: Node, victim: Callable[[Pod], int], words: str) -> None:
    """It is reported once with its reason, all is freed within 10 s, and the pod can be removed and made again."""
    stack = node.stack
    bystander = node.pod("bystander").run_idle()
    with subscribed(stack) as events:
        before = leftovers.present(stack)
        pod = node.pod("ending")
        container = pod.run_idle()
        os.kill(victim(pod), signal.SIGKILL)
        eventually(
            lambda: held(stack, pod) - before, "all is freed", until=lambda left: not left, timeout=FREED_SECONDS
        )
        assert container.wait().exit_code == 137
        eventually(lambda: not pod.ready, "the pod is not ready any more")
        reason = info(pod)["reason"]
        assert reason
        assert words in reason
        if node.engine.can(RELAYED) and needs.EXITS_ARE_TOLD:
            assert "killed by SIGKILL" in reason
        assert ("virtiofsd" in reason) == (words == "virtiofsd")
        other = node.pod("later").run(node.engine.programs.exit(0))
        events.wait_for("/tasks/exit", other.id)  # whatever was to come of the first has come before it
        (end,) = (event for event in events.of(container.id) if event.topic == "/tasks/exit")
        assert end.body["exit_status"] == 137
    pod.remove()
    again = node.pod("ending").run_idle()
    assert again.running()
    assert bystander.running()
