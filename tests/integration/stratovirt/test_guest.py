"""A machine of the stand-in with the product's own guest in it: image, agent, disks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from kuasar.agent.client import AgentClient
from tests.integration.stratovirt.rig import Rig
from tests.needs import GUEST_IMAGE, IMAGE, ROOT
from tests.standins.guest.server import running_hardware

pytestmark = [ROOT, IMAGE]
SECONDS = 60.0
COMMAND_LINE = "console=ttyS0 root=/dev/vda rootfstype=erofs"


@pytest.fixture(scope="module")
def hardware() -> Iterator[str]:
    """What guests are plugged into."""
    with running_hardware() as path:
        yield path


@pytest.fixture
def agent(rig: Rig, hardware: str) -> Iterator[AgentClient]:
    """A booted machine's agent; the rig's devices ask it."""
    binary = rig.stand_in(STANDIN_HARDWARE=hardware)
    rig.boot(binary, root=f"{GUEST_IMAGE}/root.erofs", command_line=COMMAND_LINE)
    client = rig.loop.run(rig.machine.open_channel(time.monotonic() + SECONDS))

    async def ask(op: str, body: Mapping[str, Any], deadline: float | None) -> Any:
        return await client.call(op, dict(body), deadline=deadline)

    rig.ask = ask
    yield client
    client.close()


def call(rig: Rig, agent: AgentClient, op: str, body: dict[str, Any]) -> Any:
    return rig.loop.run(agent.call(op, body, deadline=time.monotonic() + SECONDS))


def test_it_takes_an_identity(rig: Rig, agent: AgentClient) -> None:
    entropy = bytes(range(64))  # what a terminal would take for itself is in it
    body = {"time_ns": time.time_ns(), "entropy": entropy, "machine_id": "7" * 32, "hostname": "pod"}
    proof = call(rig, agent, "guest.identity", body)
    assert (proof["hostname"], proof["machine_id"]) == ("pod", "7" * 32)


def test_disks_come_and_go(rig: Rig, agent: AgentClient) -> None:
    for name in ("k1", "k2", "k1"):
        rig.plug(name)
        if rig.kind == "q35":  # the guest finds it by its serial number when it needs it
            call(rig, agent, "guest.disk", {"name": "found", "serial": name, "bytes": 8192})
        rig.unplug(name)


def test_the_agent_ends_the_machine(rig: Rig, agent: AgentClient) -> None:
    call(rig, agent, "shutdown", {"grace": 0})
    assert rig.loop.run(rig.process.ended_by(time.monotonic() + SECONDS))
    assert ("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"}) in rig.events
    assert "kuasar-guest: end: the agent exited with 0" in (rig.directory / "console").read_text()
    assert not os.path.exists(rig.directory / "qmp.sock")


def test_a_paused_guest_does_not_answer(rig: Rig, agent: AgentClient) -> None:
    rig.execute("stop")
    task = rig.loop.spawn(agent.call("info", {}, deadline=time.monotonic() + SECONDS), "info")

    async def answer() -> Any:
        return await task

    rig.execute("query-status")
    assert not task.done
    rig.execute("cont")
    assert rig.loop.run(answer())
