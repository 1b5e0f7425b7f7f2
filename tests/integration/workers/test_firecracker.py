"""The Firecracker engine in a worker, on the stand-in with its guest: pods and containers, successors, clones, and what
is given or done wrongly."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kuasar.backends.firecracker import bodies
from kuasar.core.errors import KuasarError, Unimplemented
from tests import needs
from tests.integration.net.wires import Namespace
from tests.integration.workers.rig import Rig, run, started
from tests.standins.guest.server import running_hardware
from tests.standins.install import install

pytestmark = [
    needs.ROOT,
    needs.IMAGE,
    pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="mkfs.erofs is not installed (package erofs-utils)"),
]
START = [f"{each.method} /{each.endpoint}" for each in bodies.boot(bodies.Guest("", 1, 1 << 27, 2, 2))]


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


class Pod(Rig):
    """The rig of a pod, and its worker."""

    worker: subprocess.Popen[bytes]


@asynccontextmanager
async def pod_of(namespace: Namespace, faults: dict[str, str] | None = None, **settings: Any) -> AsyncIterator[Pod]:
    """A rig with a worker whose pod is created. ``settings`` of the engine."""
    with running_hardware() as hardware:
        async with started(Pod) as r:
            yield await made(r, namespace, hardware, faults or {}, settings)


async def made(r: Pod, namespace: Namespace, hardware: str, faults: dict[str, str], settings: dict[str, Any]) -> Pod:
    """``r`` with its pod."""
    words = {"STANDIN_HARDWARE": hardware, "STANDIN_FAULTS": json.dumps(faults)}
    values = {
        "kind": "firecracker",
        "binary": install("firecracker", r.root / "program", settings=words),
        "image": str(needs.GUEST_IMAGE),
        "cache_dir": f"{r.root}/cache/fc",
        "template": False,
        "vmm_user": "root",
        **settings,
    }
    table = "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
    r.config.write_text(f"{r.config.read_text()}\n[engines.fc]\n{table}")
    r.seconds = 60.0
    await r.start_zygote()
    r.worker, _ = await r.start_worker()
    pod = {"name": "pod1", "hostname": "pod1", "cgroup_parent": f"/kuasar-test-{os.getpid()}"}
    await r.create(engine="fc", netns=namespace.path, config=pod)
    return r


async def gone(r: Rig, namespace: Namespace) -> None:
    """The pod's end; nothing is left of it."""
    await r.call("sandbox.shutdown")
    await r.nothing_held()
    assert left_in(namespace) == []


def left_in(namespace: Namespace) -> list[str]:
    """Taps and redirections."""
    taps = [link["ifname"] for link in namespace.json("link") if link["ifname"].startswith("kuasar")]
    return taps + [line for line in namespace.tc("qdisc", "show").splitlines() if "ingress" in line]


async def info(r: Rig) -> dict[str, str]:
    found: dict[str, str] = (await r.call("sandbox.status", key="", verbose=True))["info"]
    return found


async def run_container(r: Rig, name: str, command: str) -> int:
    """The exit code of a container that is gone after this."""
    await r.create_container(name, command)
    await r.call("task.start", id=name, exec_id="")
    status = (await r.call("task.wait", id=name, exec_id="", key=""))["exit_status"]
    await r.call("task.delete", id=name, exec_id="")
    return int(status)


def test_containers_of_a_pod(namespace: Namespace) -> None:
    async def scenario() -> None:
        async with pod_of(namespace) as r:
            await r.call("sandbox.start")
            assert (await info(r))["start"] == "boot: template = false"
            for name in ("one", "two", "three", "four", "five", "six"):  # more than there are drives at once
                assert await run_container(r, name, "echo written >/file && [ $(cat /file) = written ] && exit 7") == 7
            assert r.record()["machine"]["drives"] == {}
            await gone(r, namespace)

    run(scenario(), seconds=120)


def test_a_successor_takes_the_machine_over(namespace: Namespace) -> None:
    async def scenario() -> None:
        async with pod_of(namespace) as r:
            pid = (await r.call("sandbox.start"))["pid"]
            await r.create_container("idle", "sleep 1000 & wait")
            await r.call("task.start", id="idle", exec_id="")
            r.worker.kill()
            r.worker.wait()
            _, hello = await r.start_worker()
            assert hello.state == "ready"
            assert (await r.call("task.state", key="", id="idle", exec_id=""))["status"] == "running"
            assert pid in r.machine_processes()
            assert await run_container(r, "other", "exit 3") == 3
            await gone(r, namespace)

    run(scenario(), seconds=120)


def test_the_end_of_the_vmm_is_told_with_its_last_words(namespace: Namespace) -> None:
    async def scenario() -> None:
        async with pod_of(namespace) as r:
            pid = (await r.call("sandbox.start"))["pid"]
            os.kill(pid, signal.SIGKILL)
            waited = await r.call("sandbox.wait", key="")
            assert waited["exit_status"] == 255
            assert "the machine ended" in (await r.call("sandbox.status", key="", verbose=True))["info"]["reason"]
            await gone(r, namespace)

    run(scenario(), seconds=120)


def test_a_clone_of_a_template(namespace: Namespace) -> None:
    async def scenario() -> None:
        async with pod_of(namespace, template=True) as r:
            maker = [sys.executable, "-m", "kuasar.backends.firecracker.maker", "--config", str(r.config)]
            done = await asyncio.to_thread(
                subprocess.run, [*maker, "--engine", "fc"], capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, done.stderr
            await r.call("sandbox.start")
            assert (await info(r))["start"].startswith("clone of template ")
            card = namespace.json("link", "show", "eth0")[0]["address"]
            assert await run_container(r, "card", f"[ $(cat /sys/class/net/eth0/address) = {card} ] || exit 9") in (
                0,
                9,
            )
            (template,) = (r.root / "cache" / "fc" / "templates").glob("[0-9a-f]*[0-9a-f]/")
            await gone(r, namespace)
            # one that is damaged is set aside, and the pod boots
            (template / "state").write_text("rubbish")
            r.rename("pod2")
            await r.start_worker()
            pod = {"name": "pod2", "hostname": "pod2", "cgroup_parent": f"/kuasar-test-{os.getpid()}"}
            await r.create(engine="fc", netns=namespace.path, config=pod)
            await r.call("sandbox.start")
            assert (await info(r))["start"] == "boot: there is no template of its kind yet"
            await gone(r, namespace)

    run(scenario(), seconds=240)


def refusal(namespace: Namespace, faults: dict[str, str] | None = None, **settings: Any) -> KuasarError:
    """The error with which a start fails; nothing of it is left, and the sandbox can go."""

    async def scenario() -> KuasarError:
        async with pod_of(namespace, faults, **settings) as r:
            if (faults or {}).get("start") == "hang" or "hang" in (faults or {}).values():
                r.seconds = 3.0
            with pytest.raises(KuasarError) as refused:
                await r.call("sandbox.start")
            r.seconds = 60.0
            await r.until(lambda: r.record()["state"] == "created")
            await r.nothing_held()
            await gone(r, namespace)
            return refused.value

    return run(scenario(), seconds=120)


@pytest.mark.parametrize("request_", START)
def test_a_vmm_that_dies_in_the_middle_of_a_request(namespace: Namespace, request_: str) -> None:
    message = refusal(namespace, {request_: "die"}).message
    assert f"Firecracker's {request_.partition(' /')[2]}: " in message
    assert "the machine could not be started" in message


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"PUT /boot-source": "fail"}, r"Firecracker's boot-source: told to fail by the test (HTTP 400)"),
        ({"start": "die"}, "Firecracker ended before its API could be reached"),
        ({"start": "hang"}, "in time"),
        ({"PUT /actions": "hang"}, "in time"),
    ],
)
def test_a_vmm_that_fails_or_hangs_is_told(namespace: Namespace, faults: dict[str, str], words: str) -> None:
    message = refusal(namespace, faults).message
    assert words in message or "did not finish" in message or "deadline" in message.lower(), message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"binary": "/none/firecracker"}, "/none/firecracker does not exist; name it with `binary`"),
        ({"binary": "/bin/true"}, "is no version of Firecracker"),
        ({"image": "/none"}, "the guest image cannot be used: /none/image.json: No such file"),
        ({"kernel": "/none/vmlinux"}, "the guest kernel /none/vmlinux does not exist"),
    ],
)
def test_what_is_missing_is_named(namespace: Namespace, settings: dict[str, Any], words: str) -> None:
    assert words in refusal(namespace, **settings).message


def test_what_there_is_not_is_refused_by_capability(namespace: Namespace, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with pod_of(namespace) as r:
            await r.call("sandbox.start")
            bundle = r.bundle("c", "exit 0", mounts=[{
                "destination": "/data", "type": "bind", "source": str(tmp_path), "options": ["rbind", "rw"]
            }])  # fmt: skip
            rootfs = [{"type": "bind", "source": f"{bundle}/image", "target": "", "options": ["rbind", "rw"]}]
            body: dict[str, Any] = {
                "bundle": bundle,
                "rootfs": rootfs,
                "terminal": False,
                "stdin": "",
                "stdout": "",
                "stderr": "",
            }
            with pytest.raises(Unimplemented, match=r"mounts\[0\]\.source: .*mount it read-only.*emptyDir") as no:
                await r.call("task.create", id="c", **body)
            assert (no.value.engine, no.value.capability) == ("firecracker", "shared-directory")
            assert r.record()["machine"]["drives"] == {}
            assert await run_container(r, "c", "exit 5") == 5
            await gone(r, namespace)

    run(scenario(), seconds=120)


STEPS = (
    ("start.files", 0),
    ("record.cgroup", 0),
    ("start.cgroup", 0),
    ("record.tap", 0),
    ("record.ingress", 0),
    ("start.network", 0),
    ("start.setup", 0),
    ("record.mount", 0),
    ("process.vmm.forked", 0),
    ("process.vmm.recorded", 0),
    ("start.vmm", 0),
    ("start.launch", 0),
    ("start.agent", 0),
    ("start.identity", 0),
    ("start.devices", 0),
    ("start.addresses", 0),
    ("start.copies", 0),
    ("start.setup", 1),
)
"""(point, hits that pass) in the order of a start."""


def test_every_step_of_a_start_fails(namespace: Namespace) -> None:
    async def scenario() -> None:
        async with pod_of(namespace) as r:
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


def test_the_worker_dies_at_every_step_of_a_start(namespace: Namespace) -> None:
    """One start, asked for once, over all these deaths: each successor frees what there is and begins anew."""

    async def scenario() -> None:
        async with pod_of(namespace) as r:
            worker = r.worker
            r.arm(STEPS[0][0], f"kill skip={STEPS[0][1]} times=1")
            r.seconds = 280.0
            starting = asyncio.create_task(r.call("sandbox.start"))
            for index, (step, _) in enumerate(STEPS):
                await r.until(lambda worker=worker: worker.poll() is not None, seconds=60.0)
                assert r.hits(step), f"died before {step}"
                r.disarm(step)
                if index + 1 < len(STEPS):
                    following, passing = STEPS[index + 1]
                    r.arm(following, f"kill skip={passing} times=1")
                worker, hello = await r.start_worker()
                assert hello.state == "created", step
            pid = (await starting)["pid"]
            assert pid in r.machine_processes()
            await gone(r, namespace)

    run(scenario(), seconds=300)
