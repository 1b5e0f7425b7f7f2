"""Every step of a machine's start, as in test_start_steps.py, with few boots: one worker fails at one step after the
other, and one machine is started step by step over the dead bodies of its workers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from kuasar.core.errors import KuasarError
from tests import needs
from tests.integration.net.wires import Namespace
from tests.integration.workers.rig import Rig, rig, run

pytestmark = needs.MACHINES

BEFORE_THE_MACHINE = (
    ("start.files", 0),
    ("record.cgroup", 0),
    ("start.cgroup", 0),
    ("record.tap", 0),
    ("record.ingress", 0),
    ("start.network", 0),
    ("record.mount", 0),
    ("record.mount", 1),
    ("process.virtiofsd.forked", 0),
    ("process.virtiofsd.recorded", 0),
    ("start.share", 0),
    ("start.setup", 0),
)
MACHINE = (
    ("record.socket", 0),
    ("record.socket", 1),
    ("process.vmm.forked", 0),
    ("process.vmm.recorded", 0),
    ("start.vmm", 0),
)
"""An error here makes the engine boot a machine instead of cloning one, so only the worker's death is of interest."""
WITH_THE_MACHINE = (
    ("start.launch", 0),
    ("start.agent", 0),
    ("start.devices", 0),
    ("start.identity", 0),
    ("start.mount", 0),
    ("start.addresses", 0),
    ("start.setup", 1),
)
"""(point, hits that pass) in the order of a start."""


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A network namespace with an interface, as CNI leaves it."""
    made = Namespace("pod")
    try:
        made.ip("link", "add", "eth0", "type", "veth", "peer", "name", "other")
        made.ip("address", "add", "10.9.0.2/24", "dev", "eth0")
        made.ip("link", "set", "eth0", "up")
        made.ip("link", "set", "other", "up")
        yield made
    finally:
        made.remove()


async def create(r: Rig, namespace: Namespace) -> None:
    pod = {"name": "pod1", "hostname": "pod1", "cgroup_parent": f"/kuasar-test-{os.getpid()}"}
    await r.create(engine="qemu", netns=namespace.path, config=pod)


async def dead(r: Rig, worker: subprocess.Popen[bytes]) -> None:
    await r.until(lambda: worker.poll() is not None, seconds=60.0)


def left_in(namespace: Namespace) -> list[str]:
    """Taps and redirections."""
    taps = [link["ifname"] for link in namespace.json("link") if link["ifname"].startswith("kuasar")]
    return taps + [line for line in namespace.tc("qdisc", "show").splitlines() if "ingress" in line]


def test_steps_fail(namespace: Namespace) -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.start_zygote()
            await r.start_worker()
            await create(r, namespace)
            for step, passing in BEFORE_THE_MACHINE + WITH_THE_MACHINE:
                r.arm(step, f"error skip={passing} times=1")
                with pytest.raises(KuasarError, match=f"failpoint {step}"):
                    await r.call("sandbox.start")
                r.disarm(step)
                await r.nothing_held()
                assert left_in(namespace) == [], step
                assert (await r.call("sandbox.status", key="", verbose=False))["state"] == "created"
            await r.call("sandbox.start")
            await r.call("sandbox.shutdown")
            await r.nothing_held()
            assert left_in(namespace) == []

    run(scenario(), seconds=300)


def test_the_worker_dies_at_steps(namespace: Namespace) -> None:
    """One start, asked for once, over all these deaths: each successor frees what there is and begins anew."""

    async def scenario() -> None:
        async with rig() as r:
            await r.start_zygote()
            worker, _ = await r.start_worker()
            await create(r, namespace)
            steps = BEFORE_THE_MACHINE + MACHINE + WITH_THE_MACHINE
            r.arm(steps[0][0], f"kill skip={steps[0][1]} times=1")
            r.seconds = 280.0
            starting = asyncio.create_task(r.call("sandbox.start"))
            for index, (step, _) in enumerate(steps):
                await dead(r, worker)
                assert r.hits(step), f"died before {step}"
                r.disarm(step)
                if index + 1 < len(steps):
                    following, passing = steps[index + 1]
                    r.arm(following, f"kill skip={passing} times=1")
                worker, hello = await r.start_worker()
                assert hello.state == "created", step
            pid = (await starting)["pid"]
            assert pid in r.machine_processes()
            assert len(r.machine_processes()) == 3, "QEMU, and virtiofsd with its helper"
            await r.call("sandbox.shutdown")
            await r.nothing_held()
            assert left_in(namespace) == []

    run(scenario(), seconds=300)


@pytest.mark.parametrize("victim", ["vmm", "virtiofsd"])
def test_a_machine_that_hangs_is_ended(namespace: Namespace, victim: str) -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.start_zygote()
            await r.start_worker()
            await create(r, namespace)
            await r.call("sandbox.start")
            os.kill(r.record()["machine"][victim][0], signal.SIGSTOP)
            stage = (await r.call("sandbox.stop", timeout=0.2))["stage"]
            assert stage == "killed" if victim == "vmm" else stage in ("asked", "killed")
            await r.call("sandbox.shutdown")
            await r.nothing_held()
            assert left_in(namespace) == []

    run(scenario(), seconds=120)
