"""The Cloud Hypervisor engine in a real worker: steps of a start fail or kill, the VMM misbehaves at each call."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kuasar.core.errors import BackendFailed, KuasarError
from tests import needs
from tests.integration.cloud_hypervisor.rig import directory_for_all, first_process_of_guest
from tests.integration.net.wires import Namespace
from tests.integration.workers.rig import Rig, rig, run
from tests.standins.guest.server import running_hardware
from tests.standins.install import install

pytestmark = [needs.ROOT, needs.IMAGE]

STEPS = (
    ("start.files", 0),
    ("record.cgroup", 0),
    ("start.cgroup", 0),
    ("record.tap", 0),
    ("record.ingress", 0),
    ("start.network", 0),
    ("record.mount", 0),  # the VMM's directory
    ("record.mount", 1),  # the share
    ("record.mount", 2),  # the pod's files in it
    ("process.virtiofsd.forked", 0),
    ("process.virtiofsd.recorded", 0),
    ("start.share", 0),
    ("start.setup", 0),
    ("record.socket", 0),
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
CALLS = ("vm.create", "vm.boot", "vm.add-fs", "vm.add-net")
"""What the VMM is asked before a pod is ready, by its effect; vm.info is asked between."""


class Node:
    """What pods of the engine need: hardware, a program, a network namespace as CNI leaves it."""

    def __init__(self, hardware: str, directory: Path, namespace: Namespace) -> None:
        self._hardware = hardware
        self._directory = directory
        self.namespace = namespace

    def program(self, **settings: str) -> str:
        """The stand-in with these settings."""
        return install("cloud_hypervisor", self._directory, settings={"STANDIN_HARDWARE": self._hardware, **settings})

    def script(self, text: str) -> str:
        """A program that says its version, and then does something else."""
        path = self._directory / "odd"
        path.write_text(f"#!/bin/sh\n[ $1 = --version ] && echo cloud-hypervisor v50.0.0 && exit\n{text}\n")
        path.chmod(0o755)
        return str(path)

    @property
    def left(self) -> list[str]:
        """Taps and redirections."""
        taps = [link["ifname"] for link in self.namespace.json("link") if link["ifname"].startswith("kuasar")]
        return taps + [line for line in self.namespace.tc("qdisc", "show").splitlines() if "ingress" in line]

    @asynccontextmanager
    async def rig(self, annotations: Mapping[str, str] | None = None, **settings: Any) -> AsyncIterator[Rig]:
        """A worker with a sandbox of the engine that has not been started."""
        async with rig() as r:
            values = {"image": str(needs.GUEST_IMAGE), "template": False, "memory_mib": 128, **settings}
            if "binary" not in values:
                values["binary"] = self.program()
            lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
            r.config.write_text("\n".join([r.config.read_text(), "[engines.clh]", *lines, ""]))
            await r.start_zygote()
            await r.start_worker()
            await self.create(r, annotations)
            yield r

    async def create(self, r: Rig, annotations: Mapping[str, str] | None = None) -> None:
        """A sandbox."""
        pod = {"name": "pod1", "hostname": "pod1", "cgroup_parent": f"/kuasar-test-{os.getpid()}"}
        await r.create(engine="clh", netns=self.namespace.path, config={**pod, "annotations": dict(annotations or {})})

    async def end(self, r: Rig) -> None:
        """The sandbox goes; nothing stays."""
        r.seconds = 20.0
        await r.call("sandbox.shutdown")
        await r.nothing_held()
        assert self.left == []


@pytest.fixture
def node() -> Iterator[Node]:
    namespace = Namespace("pod")
    try:
        namespace.ip("link", "add", "eth0", "type", "veth", "peer", "name", "other")
        namespace.ip("address", "add", "10.9.0.2/24", "dev", "eth0")
        namespace.ip("link", "set", "eth0", "up")
        namespace.ip("link", "set", "other", "up")
        with running_hardware() as hardware, directory_for_all() as directory:
            yield Node(hardware, directory, namespace)
    finally:
        namespace.remove()


def scenario(work: Coroutine[Any, Any, None]) -> None:
    run(work, seconds=300)


# -- life --------------------------------------------------------------------------------------------------------------


def test_containers_run_in_a_machine(node: Node) -> None:
    async def work() -> None:
        async with node.rig() as r:
            started = await r.call("sandbox.start")
            assert started["pid"] == r.record()["machine"]["vmm"][0]
            out = r.root / "out"
            os.mkfifo(out)
            reader = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
            try:
                await r.create_container("c1", "echo hello; exit 7", stdout=str(out))
                await r.call("task.start", id="c1", exec_id="")
                ended = await r.call("task.wait", key="", id="c1", exec_id="")
                assert ended["exit_status"] == 7
                assert os.read(reader, 64) == b"hello\n"
            finally:
                os.close(reader)
            await r.call("task.delete", id="c1", exec_id="")
            assert (await r.call("sandbox.stop", timeout=5.0))["stage"] == "asked"
            await node.end(r)

    scenario(work())


def test_an_adopted_machine_goes_on(node: Node) -> None:
    async def work() -> None:
        async with node.rig() as r:
            await r.call("sandbox.start")
            await r.create_container("c1", "sleep 3600")
            await r.call("task.start", id="c1", exec_id="")
            r.kill_worker()
            _, hello = await r.start_worker()
            assert hello.state == "ready"
            await r.call("task.kill", id="c1", exec_id="", signal=9, all=False)
            assert (await r.call("task.wait", key="", id="c1", exec_id=""))["exit_status"] == 137
            await node.end(r)

    scenario(work())


def test_a_share_that_somebody_has_unmounted_is_named(node: Node) -> None:
    async def work() -> None:
        async with node.rig() as r:
            await r.call("sandbox.start")
            await r.create_container("c1", "sleep 3600")
            await r.call("task.start", id="c1", exec_id="")
            subprocess.run(["umount", "--lazy", f"{r.directory}/shared"], check=True, timeout=10)
            with pytest.raises(BackendFailed, match=f"{r.directory}/shared, has been unmounted"):
                await r.create_container("c2", "true")
            assert (await r.call("task.state", key="", id="c1", exec_id=""))["status"] == "running"
            assert "c2" not in r.record()["containers"]
            await node.end(r)

    scenario(work())


def test_pods_start_as_clones_of_a_template(node: Node) -> None:
    def made(templates: Path) -> list[Path]:
        return [path.parent for path in templates.glob("*/template.json") if not path.parent.suffix]

    async def work() -> None:
        async with node.rig(template=True) as r:
            await r.call("sandbox.start")
            assert r.record()["machine"]["start"] == "boot: there is no template of its kind yet"
            templates = r.root / "cache" / "clh" / "templates"
            await r.until(lambda: made(templates), seconds=120.0)
            await node.end(r)
            r.rename("pod2")
            await r.start_worker()
            await node.create(r)
            await r.call("sandbox.start")
            (template,) = made(templates)
            assert r.record()["machine"]["start"] == f"clone of template {template.name}"
            assert r.record()["machine"]["template"] == "hit"
            await node.end(r)
            # a damaged one is set aside, and the pod boots
            state = (template / "state").read_bytes()
            (template / "state").write_bytes(state[:-1])
            r.rename("pod3")
            await r.start_worker()
            await node.create(r)
            await r.call("sandbox.start")
            assert r.record()["machine"]["start"] == "boot: there is no template of its kind yet"
            assert (templates / f"{template.name}.bad").is_dir()
            await r.until(lambda: made(templates), seconds=120.0)
            await node.end(r)

    scenario(work())


def test_a_machine_that_its_guest_resets_is_no_pod_any_more(node: Node) -> None:
    """As a kernel does that panics: the VMM starts it anew, without an identity."""

    async def work() -> None:
        async with node.rig() as r:
            await r.call("sandbox.start")
            os.kill(first_process_of_guest(), signal.SIGKILL)
            await r.call("sandbox.wait", key="")
            reason = (await r.call("sandbox.status", key="", verbose=True))["info"]["reason"]
            assert "the machine is lost: its guest has reset the machine" in reason
            assert "kuasar-guest: ready" in reason, "the last lines of its console"
            await node.end(r)

    scenario(work())


def test_a_root_file_system_in_a_file_is_a_disk(node: Node) -> None:
    async def work() -> None:
        async with node.rig() as r:
            await r.call("sandbox.start")
            bundle = r.bundle("c1", "echo written >/kept; exit 3")
            image = r.root / "image"
            command = ["mkfs.ext4", "-q", "-F", "-d", f"{bundle}/image", str(image), "16M"]
            subprocess.run(command, check=True, timeout=60)
            for status in (3, 3):  # plugged in, out, and in again
                rootfs = [{"type": "ext4", "source": str(image), "target": "", "options": ["rw", "loop"]}]
                await r.create_container("c1", "echo written >/kept; exit 3", rootfs=rootfs)
                assert r.record()["machine"]["lent"]["c1"]
                await r.call("task.start", id="c1", exec_id="")
                assert (await r.call("task.wait", key="", id="c1", exec_id=""))["exit_status"] == status
                await r.call("task.delete", id="c1", exec_id="")
            assert sorted(os.listdir(r.directory / "vmm")) == ["virtiofsd.sock", "vsock.sock"]
            shown = subprocess.run(["debugfs", "-R", "cat /kept", str(image)], capture_output=True, check=True)
            assert shown.stdout == b"written\n"
            await node.end(r)

    scenario(work())


def test_what_a_machine_does_not_have_is_refused_by_name(node: Node) -> None:
    async def work() -> None:
        async with node.rig() as r:
            await r.call("sandbox.start")
            await r.create_container("c1", "sleep 3600")
            with pytest.raises(KuasarError, match="checkpoint"):
                await r.call("task.checkpoint", id="c1", path="/tmp/x", options={})
            await node.end(r)
            r.rename("pod2")
            await r.start_worker()
            pod = {"name": "pod2", "hostname": "pod2", "host_network": True}
            with pytest.raises(KuasarError, match=r"host's network.*a virtual machine has a kernel of its own"):
                await r.create(engine="clh", config=pod)

    scenario(work())


@pytest.mark.parametrize("victim", ["vmm", "virtiofsd"])
def test_a_machine_that_hangs_is_ended(node: Node, victim: str) -> None:
    async def work() -> None:
        async with node.rig() as r:
            await r.call("sandbox.start")
            os.kill(r.record()["machine"][victim][0], signal.SIGSTOP)
            stage = (await r.call("sandbox.stop", timeout=0.2))["stage"]
            assert stage == "killed" if victim == "vmm" else stage in ("asked", "killed")
            await node.end(r)

    scenario(work())


# -- steps -------------------------------------------------------------------------------------------------------------


def test_steps_fail(node: Node) -> None:
    async def work() -> None:
        async with node.rig() as r:
            for step, passing in STEPS:
                r.arm(step, f"error skip={passing} times=1")
                with pytest.raises(KuasarError, match=f"failpoint {step}"):
                    await r.call("sandbox.start")
                r.disarm(step)
                await r.nothing_held()
                assert node.left == [], step
                assert (await r.call("sandbox.status", key="", verbose=False))["state"] == "created"
            await r.call("sandbox.start")
            await node.end(r)

    scenario(work())


def test_the_worker_dies_at_steps(node: Node) -> None:
    """One start, asked for once, over all these deaths: each successor frees what there is and begins anew."""

    async def dead(r: Rig, worker: subprocess.Popen[bytes]) -> None:
        await r.until(lambda: worker.poll() is not None, seconds=60.0)

    async def work() -> None:
        async with node.rig() as r:
            worker = r._processes[-1]
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
            pid = (await starting)["pid"]
            assert pid in r.machine_processes()
            await node.end(r)

    scenario(work())


# -- what is given or done wrongly -------------------------------------------------------------------------------------


def refusal(node: Node, seconds: float = 40.0, annotations: Mapping[str, str] | None = None, **settings: Any) -> str:
    """The message with which a start fails; nothing of it is left, and the sandbox can go."""
    found = []

    async def work() -> None:
        async with node.rig(annotations, **settings) as r:
            r.seconds = seconds
            with pytest.raises(KuasarError) as refused:
                await r.call("sandbox.start")
            found.append(refused.value.message)
            await r.nothing_held()
            assert (await r.call("sandbox.status", key="", verbose=False))["state"] == "created"
            await node.end(r)

    scenario(work())
    return found[0]


def test_a_missing_program_is_named(node: Node) -> None:
    message = refusal(node, binary="/no/such/ch")
    assert "/no/such/ch does not exist" in message
    assert "`binary` of the engine" in message


def test_a_version_that_is_too_old_is_named(node: Node) -> None:
    assert "v49.0.0 is too old, 50 or newer is needed" in refusal(node, binary=node.program(STANDIN_VERSION="49.0.0"))


def test_a_program_that_fails_at_once_is_told_by_its_words(node: Node) -> None:
    assert "the moon is too bright" in refusal(node, binary=node.script("echo the moon is too bright >&2; exit 1"))


def test_an_api_that_never_answers_costs_the_deadline(node: Node) -> None:
    assert "Cloud Hypervisor's vm.create did not finish in time" in refusal(
        node, seconds=60.0, binary=node.script("exec sleep 3600")
    )


@pytest.mark.parametrize("endpoint", [*CALLS, "vm.info"])
@pytest.mark.parametrize("fault, words", [("fail", "told to fail: by the test (HTTP 500)"), ("die", "connection")])
def test_a_call_that_goes_wrong_is_told(node: Node, endpoint: str, fault: str, words: str) -> None:
    message = refusal(node, binary=node.program(STANDIN_FAULTS=json.dumps({endpoint: fault})))
    assert endpoint in message
    assert words in message


def test_a_call_that_hangs_costs_the_deadline(node: Node) -> None:
    binary = node.program(STANDIN_FAULTS=json.dumps({"vm.add-fs": "hang"}))
    assert "vm.add-fs did not finish in time" in refusal(node, seconds=60.0, binary=binary)


def test_an_annotation_of_another_value_is_named(node: Node) -> None:
    message = refusal(node, annotations={"io.kuasar/shared-fs": "9p"})
    assert "annotations.io.kuasar/shared-fs: '9p' is neither virtiofs nor none" in message


def test_a_directory_that_nothing_shares_is_refused_with_the_way_out(node: Node) -> None:
    async def work() -> None:
        async with node.rig(shared_fs="none") as r:
            await r.call("sandbox.start")
            with pytest.raises(KuasarError, match=r"shares no directory .*use a block snapshotter"):
                await r.create_container("c1", "true")
            await node.end(r)

    scenario(work())


def test_a_guest_that_finds_no_root_disk_is_told_by_its_words(node: Node) -> None:
    assert "could not be started" in refusal(node, kernel_arguments="rootfstype=xfs")
