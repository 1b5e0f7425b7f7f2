"""A hundred pods come and go, and nothing of them stays: not in the kernel, not on disk, not in our processes."""

from __future__ import annotations

import os

import pytest

from kuasar.cli.cri import CriError
from tests.deadline import eventually
from tests.e2e import leftovers
from tests.e2e.engines import OURS
from tests.e2e.harness import Node


def descriptors(pid: int) -> int:
    """Open descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    """Threads of a process."""
    return len(os.listdir(f"/proc/{pid}/task"))


@pytest.mark.needs(OURS)
def test_pods_in_a_row_leave_nothing(node: Node) -> None:
    def turn(count: int) -> None:
        pod = node.pod(f"turn-{count}")
        command, _ = pod.engine.programs.say("here")
        if count % 2:
            assert pod.run(command).wait().exit_code == 0
        else:
            pod.run_idle()
        pod.remove()

    for count in range(5):  # what is made once and kept
        turn(count)
    programs = {name: node.stack.pid(name) for name in ("gateway", "zygote", "keeper")} | {
        "supervisord": supervisord(node)
    }
    before = {name: descriptors(pid) for name, pid in programs.items()}
    things = leftovers.present(node.stack)
    for count in range(5, node.engine.pods_in_a_row):
        turn(count)
    eventually(
        lambda: {name: descriptors(pid) - before[name] for name, pid in programs.items()},
        "descriptors are closed",
        until=lambda grown: max(grown.values()) <= 1,
    )
    eventually(lambda: sorted(leftovers.present(node.stack) - things), "nothing is left", until=lambda left: not left)
    assert {name: node.stack.pid(name) for name in ("gateway", "zygote", "keeper")}.items() <= programs.items()
    assert threads(programs["gateway"]) < 50


@pytest.mark.needs(OURS)
def test_pods_that_cannot_start_leave_nothing(node: Node) -> None:
    before = {name: descriptors(node.stack.pid(name)) for name in ("gateway", "zygote", "keeper")}
    for count in range(5):
        with pytest.raises(CriError):
            node.pod(f"bad-{count}", sysctls={"kernel.no_such_key": "1"})
    eventually(
        lambda: {name: descriptors(node.stack.pid(name)) - before[name] for name in before},
        "descriptors are closed",
        until=lambda grown: max(grown.values()) <= 1,
    )


def supervisord(node: Node) -> int:
    """Its process."""
    return node.stack.supervisord_pid()
