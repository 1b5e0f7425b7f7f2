"""The Quark driver with a stand-in for ``quark sandbox``: one kernel for the containers of an agent, and its end."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from kuasar.core import cgroup
from kuasar.core.errors import BackendFailed, InvalidArgument, NotFound, Unavailable, Unimplemented
from tests.integration.agent.harness import Agent, running_agent
from tests.standins.quark_host import QuarkProgram, quark_host

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def host(request: pytest.FixtureRequest) -> Iterator[None]:
    """What an installed Quark has on its host."""
    with nullcontext() if request.node.get_closest_marker("real_engine") else quark_host():
        yield


@contextmanager
def quark(base: Path, **faults: str) -> Iterator[tuple[Agent, QuarkProgram]]:
    program = QuarkProgram(base, faults)
    options = {"binary": str(program.path)}
    with running_agent(base, f"q{uuid.uuid4().hex[:8]}", driver="quark", options=options) as agent:
        yield agent, program
        print(agent.log.read_text())


@pytest.fixture
def pod(base: Path) -> Iterator[Agent]:
    """An agent whose containers are Quark's."""
    with quark(base) as (agent, _):
        yield agent


def test_two_containers_in_one_kernel(pod: Agent) -> None:
    async def scenario() -> None:
        out = pod.fifo("out")
        reader = pod.reader(out)
        one = await pod.run_container("one", ["sh", "-c", "echo hello; exit 3"], stdout=out)
        assert await pod.read(reader) == b"hello\n"
        two = await pod.run_container("two", ["sleep", "1000"])
        assert one["pid"] == two["pid"]
        assert one["pid"] in cgroup.procs(f"{pod.cgroup}/quark")
        assert (await pod.finish("one"))["exit_status"] == 3
        await pod.start_exec("two", "e", ["sh", "-c", "exit 7"])
        assert (await pod.call("task.wait", id="two", exec_id="e"))["exit_status"] == 7
        await pod.start_exec("two", "f", ["sleep", "1000"])
        await pod.call("task.kill", id="two", exec_id="f", signal=signal.SIGTERM)
        assert (await pod.call("task.wait", id="two", exec_id="f"))["exit_status"] == 143
        await pod.call("task.kill", id="two", signal=signal.SIGKILL)
        assert (await pod.finish("two"))["exit_status"] == 137

    pod.run(scenario())


def test_volumes_reach_the_containers(pod: Agent, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host")
    mounts = [
        {"destination": "/data/deep", "type": "bind", "source": str(tmp_path), "options": ["rbind", "ro"]},
        {"destination": "/etc/one", "type": "bind", "source": str(tmp_path / "file"), "options": ["bind"]},
    ]

    async def scenario() -> None:
        out = pod.fifo("out")
        reader = pod.reader(out)
        script = "cat /data/deep/file /etc/one; echo x > /data/deep/no || echo refused; echo y > /etc/one"
        await pod.run_container("one", ["sh", "-c", script], stdout=out, mounts=mounts)
        assert await pod.read(reader) == b"from the hostfrom the hostrefused\n"
        await pod.finish("one")
        assert (tmp_path / "file").read_text() == "y\n"

    pod.run(scenario())


def test_a_link_in_the_image_leads_nowhere(pod: Agent, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("volume")

    async def scenario() -> None:
        out = pod.fifo("out")
        reader = pod.reader(out)
        pod.rootfs()
        mounts = [{"destination": "/link/in", "type": "bind", "source": str(tmp_path), "options": ["rbind"]}]
        (pod.base / "image" / "link").symlink_to("/../../../../escape")
        await pod.run_container("two", ["cat", "/escape/in/file"], stdout=out, mounts=mounts)
        assert await pod.read(reader) == b"volume"
        await pod.finish("two")

    pod.run(scenario())


def test_the_limits_of_the_kernel_are_those_of_its_containers_together(pod: Agent) -> None:
    def limit() -> int:
        stats = cgroup.stats(f"{pod.cgroup}/quark")
        memory = stats["memory"]
        return int(memory["usage"]["limit"] if stats["version"] == 1 else memory["usage_limit"])

    def bounded(size: int) -> dict[str, Any]:
        return {"resources": {"memory": {"limit": size}}}

    async def scenario() -> None:
        await pod.run_container("one", ["sleep", "1000"], linux=bounded(100 * MIB))
        assert limit() == 164 * MIB
        await pod.create("two", ["sleep", "1000"], linux=bounded(50 * MIB))
        assert limit() == 214 * MIB
        await pod.call("task.update", id="two", resources={"memory": {"limit": 70 * MIB}})
        assert limit() == 234 * MIB
        await pod.call("task.delete", id="two")
        assert limit() == 164 * MIB

    pod.run(scenario())


def test_what_quark_cannot_do_is_refused(pod: Agent) -> None:
    async def scenario() -> None:
        with pytest.raises(Unimplemented, match="sysctls: a Quark pod"):
            await pod.call("setup", sysctls={"kernel.shm_rmid_forced": "1"})
        await pod.run_container("one", ["sleep", "1000"])
        with pytest.raises(Unimplemented, match="Task server cannot pause"):
            await pod.call("task.pause", id="one")
        assert (await pod.call("task.stats", id="one"))["stats"]["version"] in (1, 2)
        await pod.run_container("two", ["sleep", "1000"])
        with pytest.raises(Unimplemented, match="does not tell the 2 containers of this pod apart"):
            await pod.call("task.stats", id="one")
        with pytest.raises(Unimplemented, match="terminal"):
            await pod.create("three", ["sh"], terminal=True)

    pod.run(scenario())


def test_the_death_of_the_kernel_is_the_end_of_all(pod: Agent) -> None:
    async def scenario() -> None:
        created = await pod.run_container("one", ["sleep", "1000"])
        await pod.run_container("two", ["sleep", "1000"])
        os.kill(created["pid"], signal.SIGKILL)
        with pytest.raises(Unavailable):  # the agent ends when it has told the ends
            while True:
                await pod.call("task.wait", id="two")

    pod.run(scenario())
    assert "the pod's kernel is dead: quark killed by SIGKILL" in pod.log.read_text()


def test_a_missing_volume_is_named_and_leaves_nothing(pod: Agent) -> None:
    mounts = [{"destination": "/data", "type": "bind", "source": "/no/such/place", "options": ["rbind"]}]

    async def scenario() -> None:
        with pytest.raises(InvalidArgument, match=r"mounts\[0\].source: '/no/such/place' is not there"):
            await pod.create("one", ["true"], mounts=mounts)
        await pod.run_container("one", ["true"])
        assert (await pod.finish("one"))["exit_status"] == 0

    pod.run(scenario())


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"sandbox": "fail"}, "quark sandbox exited with 1: .*told to fail by the test"),
        ({"sandbox": "die"}, "quark"),
        ({"Create": "fail"}, "quark's Create: .*told to fail by the test"),
        ({"Create": "garble"}, "quark's Create: ttrpc frame"),
        ({"Start": "fail"}, "quark's Start: .*told to fail by the test"),
        ({"Start": "die"}, "quark's Start: the sandbox hung up"),
    ],
)
def test_what_goes_wrong_is_told(base: Path, fault: dict[str, str], words: str) -> None:
    with quark(base, **fault) as (pod, _):

        async def scenario() -> None:
            with pytest.raises((BackendFailed, Unavailable), match=words):
                await pod.run_container("one", ["true"])

        pod.run(scenario())


def test_a_program_that_is_missing_is_named(base: Path) -> None:
    with running_agent(base, "missing", driver="quark", options={"binary": "no-such-quark"}) as pod:

        async def scenario() -> None:
            with pytest.raises(BackendFailed, match=r"needs the program no-such-quark.*`binary` of the engine"):
                await pod.create("one", ["true"])
            with pytest.raises(NotFound):
                await pod.call("task.state", id="one")

        pod.run(scenario())


@pytest.mark.real_engine
def test_the_true_program_runs_two_containers(base: Path) -> None:
    binary = os.environ.get("KUASAR_REAL_QUARK", "")
    if not binary:
        pytest.skip("KUASAR_REAL_QUARK is not set: there is no true Quark to run")
    with running_agent(base, f"q{uuid.uuid4().hex[:8]}", driver="quark", options={"binary": binary}) as pod:

        async def scenario() -> None:
            out = pod.fifo("out")
            reader = pod.reader(out)
            await pod.run_container("one", ["sh", "-c", "echo hello; exit 3"], stdout=out)
            assert await pod.read(reader) == b"hello\n"
            assert (await pod.finish("one"))["exit_status"] == 3
            await pod.run_container("two", ["sleep", "1000"])
            await pod.start_exec("two", "e", ["sh", "-c", "exit 7"])
            assert (await pod.call("task.wait", id="two", exec_id="e"))["exit_status"] == 7

        pod.run(scenario())
