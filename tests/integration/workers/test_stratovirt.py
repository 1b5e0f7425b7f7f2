"""The StratoVirt engine in a worker, on the stand-in with the product's own guest: pods of the size that they ask for,
containers, every step of a start, successors, and machines that die."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kuasar.core.errors import KuasarError
from tests import needs
from tests.integration.net.wires import Namespace
from tests.integration.stratovirt.rig import write_stand_in
from tests.integration.workers.rig import Rig, rig, run
from tests.standins.guest.server import running_hardware

VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
pytestmark = [
    needs.ROOT,
    needs.IMAGE,
    pytest.mark.skipif(
        not os.path.exists(VIRTIOFSD), reason=f"{VIRTIOFSD} is not installed (package qemu-system-common)"
    ),
]
STEPS = (
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
    ("record.socket", 0),
    ("record.socket", 1),
    ("record.socket", 2),
    ("process.vmm.forked", 0),
    ("process.vmm.recorded", 0),
    ("start.vmm", 0),
    ("start.launch", 0),
    ("start.agent", 0),
    ("start.identity", 0),
    ("start.devices", 0),
    ("start.mount", 0),
    ("start.addresses", 0),
    ("start.setup", 1),
)
"""(point, hits that pass) in the order of a start."""


@pytest.fixture(scope="module")
def hardware() -> Iterator[str]:
    """What guests are plugged into."""
    with running_hardware() as path:
        yield path


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A network namespace with an interface, as CNI leaves it."""
    made, beyond = Namespace("pod"), Namespace("beyond")
    try:
        made.ip("link", "add", "eth0", "type", "veth", "peer", "name", "other")
        made.ip("link", "set", "other", "netns", beyond.path)
        made.ip("address", "add", "10.9.0.2/24", "dev", "eth0")
        made.ip("link", "set", "eth0", "up")
        yield made
    finally:
        made.remove()
        beyond.remove()


@asynccontextmanager
async def pod_of(
    namespace: Namespace, hardware: str, kind: str = "q35", faults: dict[str, str] | None = None, **config: Any
) -> AsyncIterator[tuple[Rig, subprocess.Popen[bytes]]]:
    """A rig and its worker, whose pod is created."""
    async with rig() as r:
        bzimage = bytearray(1024)
        bzimage[0x202:0x206] = b"HdrS"
        (r.root / "vmlinuz").write_bytes(bzimage)
        (r.root / "firmware").write_bytes(bytes(256 * 1024))
        words = {"STANDIN_HARDWARE": hardware, "STANDIN_JOURNAL": f"{r.root}/journal"}
        values = {
            "binary": write_stand_in(r.root, STANDIN_FAULTS=json.dumps(faults or {}), **words),
            "machine": kind,
            "image": str(needs.GUEST_IMAGE),
            "cache_dir": f"{r.root}/cache/sv",
            **({"kernel": f"{r.root}/vmlinuz", "firmware": f"{r.root}/firmware"} if kind == "q35" else {}),
        }
        table = "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
        r.config.write_text(f"{r.config.read_text()}\n[engines.stratovirt]\n{table}")
        r.seconds = 60.0
        await r.start_zygote()
        worker, _ = await r.start_worker()
        pod = {"name": "pod1", "hostname": "pod1", "cgroup_parent": f"/kuasar-test-{os.getpid()}", **config}
        await r.create(engine="stratovirt", netns=namespace.path, config=pod)
        yield r, worker


async def dead(r: Rig, worker: subprocess.Popen[bytes]) -> None:
    await r.until(lambda: worker.poll() is not None, seconds=60.0)


async def gone(r: Rig, namespace: Namespace) -> None:
    """The pod's end; nothing is left of it."""
    await r.call("sandbox.shutdown")
    await r.nothing_held()
    assert left_in(namespace) == []


def left_in(namespace: Namespace) -> list[str]:
    """Taps and redirections."""
    taps = [link["ifname"] for link in namespace.json("link") if link["ifname"].startswith("kuasar")]
    return taps + [line for line in namespace.tc("qdisc", "show").splitlines() if "ingress" in line]


def command_line(r: Rig) -> str:
    """The VMM's."""
    pid = r.record()["machine"]["vmm"][0]
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


async def run_container(r: Rig, name: str, command: str) -> int:
    """The exit code of a container that is gone after this."""
    await r.create_container(name, command)
    await r.call("task.start", id=name, exec_id="")
    status = (await r.call("task.wait", id=name, exec_id="", key=""))["exit_status"]
    await r.call("task.delete", id=name, exec_id="")
    return int(status)


@pytest.mark.parametrize("kind", ["q35", "microvm"])
def test_containers_of_a_pod(namespace: Namespace, hardware: str, kind: str) -> None:
    async def scenario() -> None:
        async with pod_of(namespace, hardware, kind) as (r, _):
            await r.call("sandbox.start")
            info = (await r.call("sandbox.status", key="", verbose=True))["info"]
            assert (info["machine"], info["vcpus"], info["memory"]) == (kind, "1", "128 MiB")
            for name in ("one", "two"):
                assert await run_container(r, name, "echo written >/file && exit 7") == 7
            await gone(r, namespace)

    run(scenario(), seconds=120)


def test_a_machine_has_what_its_pod_asks_for(namespace: Namespace, hardware: str) -> None:
    """The original gives every pod the same."""

    async def scenario() -> None:
        limits = {"cpu_period": 100000, "cpu_quota": 250000, "memory_limit_in_bytes": 512 << 20}
        async with pod_of(namespace, hardware, resources=limits) as (r, _):
            await r.call("sandbox.start")
            vcpus, memory = r.record()["machine"]["size"]
            assert vcpus == 3
            assert memory >= 512 << 20
            assert f"-smp cpus=3,maxcpus=3 -m size={memory >> 20}M" in command_line(r)
            assert ",queues=3" in command_line(r)
            await gone(r, namespace)

    run(scenario(), seconds=120)


def test_steps_fail(namespace: Namespace, hardware: str) -> None:
    async def scenario() -> None:
        async with pod_of(namespace, hardware) as (r, _):
            for step, passing in STEPS:
                r.arm(step, f"error skip={passing} times=1")
                with pytest.raises(KuasarError, match=f"failpoint {step}"):
                    await r.call("sandbox.start")
                r.disarm(step)
                await r.nothing_held()
                assert left_in(namespace) == [], step
                assert (await r.call("sandbox.status", key="", verbose=False))["state"] == "created"
            await r.call("sandbox.start")
            await gone(r, namespace)

    run(scenario(), seconds=300)


def test_the_worker_dies_at_steps(namespace: Namespace, hardware: str) -> None:
    """One start, asked for once, over all these deaths: each successor frees what there is and begins anew."""

    async def scenario() -> None:
        async with pod_of(namespace, hardware) as (r, worker):
            r.arm(STEPS[0][0], f"kill skip={STEPS[0][1]} times=1")
            r.seconds = 280.0
            starting = asyncio.create_task(r.call("sandbox.start"))
            for index, (step, _) in enumerate(STEPS):
                await dead(r, worker)
                assert r.hits(step), f"died before {step}"
                r.disarm(step)
                if index + 1 < len(STEPS):
                    following, passing = STEPS[index + 1]
                    r.arm(following, f"kill skip={passing} times=1")
                worker, hello = await r.start_worker()
                assert hello.state == "created", step
            assert (await starting)["pid"] in r.machine_processes()
            await gone(r, namespace)

    run(scenario(), seconds=300)


def test_a_successor_takes_the_machine_over(namespace: Namespace, hardware: str) -> None:
    async def scenario() -> None:
        async with pod_of(namespace, hardware) as (r, worker):
            pid = (await r.call("sandbox.start"))["pid"]
            await r.create_container("c", "sh -c 'kill -STOP $$'; exit 9")
            await r.call("task.start", id="c", exec_id="")
            worker.kill()
            worker.wait()
            _, hello = await r.start_worker()
            assert (hello.state, r.record()["machine"]["vmm"][0]) == ("ready", pid)
            await r.call("task.kill", id="c", exec_id="", signal=signal.SIGKILL, all=False)
            assert (await r.call("task.wait", id="c", exec_id="", key=""))["exit_status"] == 128 + signal.SIGKILL
            await r.call("task.delete", id="c", exec_id="")
            assert await run_container(r, "d", "exit 5") == 5
            await gone(r, namespace)

    run(scenario(), seconds=120)


@pytest.mark.parametrize("victim", ["vmm", "virtiofsd"])
def test_what_dies_ends_the_pod_with_a_reason(namespace: Namespace, hardware: str, victim: str) -> None:
    async def scenario() -> None:
        async with pod_of(namespace, hardware) as (r, _):
            await r.call("sandbox.start")
            os.kill(r.record()["machine"][victim][0], signal.SIGKILL)
            ended = await r.call("sandbox.wait", key="")
            assert ended["exit_status"] == 255
            assert ("virtiofsd" if victim == "virtiofsd" else "the machine ended") in ended["reason"]
            await gone(r, namespace)

    run(scenario(), seconds=120)


@pytest.mark.parametrize(
    "faults, words",
    [
        ({"start": "fail"}, "told to fail by the test"),
        ({"greeting": "die"}, "StratoVirt is gone"),
        ({"greeting": "garble"}, "connecting to StratoVirt"),
    ],
)
def test_a_start_that_fails_says_why_and_can_be_repeated(
    namespace: Namespace, hardware: str, faults: dict[str, str], words: str
) -> None:
    async def scenario() -> None:
        async with pod_of(namespace, hardware, faults=faults) as (r, _):
            with pytest.raises(KuasarError, match=words):
                await r.call("sandbox.start")
            await r.nothing_held()
            assert left_in(namespace) == []
            write_stand_in(r.root, STANDIN_HARDWARE=hardware)
            await r.call("sandbox.start")
            await gone(r, namespace)

    run(scenario(), seconds=120)


def test_a_machine_does_not_grow(namespace: Namespace, hardware: str) -> None:
    """Larger limits are the guest's cgroups' to keep."""

    async def scenario() -> None:
        async with pod_of(namespace, hardware) as (r, _):
            await r.call("sandbox.start")
            size = r.record()["machine"]["size"]
            pod = {"name": "pod1", "hostname": "pod1", "cgroup_parent": f"/kuasar-test-{os.getpid()}"}
            more = {"cpu_period": 100000, "cpu_quota": 400000, "memory_limit_in_bytes": 1 << 30}
            await r.call("sandbox.update", config={**pod, "resources": more})
            assert r.record()["machine"]["size"] == size
            await gone(r, namespace)

    run(scenario(), seconds=120)


def test_more_cards_than_a_microvm_has(namespace: Namespace, hardware: str) -> None:
    namespace.ip("link", "add", "eth1", "type", "veth", "peer", "name", "eth2")
    for name in ("eth1", "eth2"):
        namespace.ip("link", "set", name, "up")

    async def scenario() -> None:
        async with pod_of(namespace, hardware, "microvm") as (r, _):
            with pytest.raises(KuasarError, match="the pod has 3 network interfaces, a StratoVirt microvm at most 2"):
                await r.call("sandbox.start")
            await r.nothing_held()
            assert left_in(namespace) == []

    run(scenario(), seconds=120)


def test_what_no_machine_has_is_refused_by_name(namespace: Namespace, hardware: str) -> None:
    async def scenario() -> None:
        async with pod_of(namespace, hardware) as (r, _):
            await r.call("sandbox.start")
            device = {"path": "/dev/x", "type": "c", "major": 4, "minor": 64}
            with pytest.raises(KuasarError, match="/dev/x is a character device of the host"):
                bundle = r.bundle("c", "true", linux={"devices": [device], "namespaces": []})
                rootfs = [{"type": "bind", "source": f"{bundle}/image", "target": "", "options": ["rbind"]}]
                streams = {"stdin": "", "stdout": "", "stderr": "", "terminal": False}
                await r.router.call(
                    r.sandbox,
                    "task.create",
                    {"id": "c", "bundle": bundle, "rootfs": rootfs, **streams},
                    key="c",
                    deadline=time.monotonic() + r.seconds,
                )
            await gone(r, namespace)

    run(scenario(), seconds=120)
