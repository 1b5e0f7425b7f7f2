"""What containers of a pod share, what they may use, and what becomes of them with the agent."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from kuasar.core import cgroup
from kuasar.core.errors import InvalidArgument, NotFound, Unavailable, Unimplemented, WrongState
from tests.deadline import eventually
from tests.integration.agent.harness import CLONE_NEWIPC, CLONE_NEWNS, CLONE_NEWUTS, Agent, running_agent
from tests.integration.agent.test_life import events_of


def namespace(pid: int, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def becomes(pid: int, *argv: str) -> None:
    """The runtime says "started" a moment before the process is what it was started as."""
    wanted = "".join(f"{word}\0" for word in argv).encode()
    eventually(Path(f"/proc/{pid}/cmdline").read_bytes, f"command line of {pid}", until=wanted.__eq__)


def test_pids_are_the_hosts(agent: Agent) -> None:
    async def scenario() -> None:
        pid = (await agent.run_container("c", ["sleep", "123"]))["pid"]
        becomes(pid, "sleep", "123")
        executed = (await agent.start_exec("c", "x", ["sleep", "124"]))["pid"]
        becomes(executed, "sleep", "124")
        pids = (await agent.call("task.pids", id="c"))["pids"]
        assert sorted(pids) == sorted([[pid, ""], [executed, "x"]])
        assert await agent.call("task.connect", id="c") == {"task_pid": pid, "shim_pid": agent.pid}
        hello = await (await agent.connect()).hello()
        assert (hello.pid, hello.driver, hello.containers) == (agent.pid, "oci", ["c"])

    agent.run(scenario())


def test_containers_of_a_pod_share_its_namespaces_name_and_memory(agent: Agent) -> None:
    async def scenario() -> None:
        await agent.call("setup", hostname="the-pod", sysctls={"kernel.shm_rmid_forced": "1"}, shm_bytes=1 << 20)
        shm = {
            "destination": "/dev/shm",
            "type": "bind",
            "source": f"{agent.directory}/shm",
            "options": ["rbind", "rw"],
        }
        mounts = [*agent.spec("x", [])["mounts"], shm]
        stdout = agent.fifo("out")
        reader = agent.reader(stdout)
        first = await agent.run_container("a", ["sh", "-c", "echo shared > /dev/shm/file; sleep 100"], mounts=mounts)
        script = "while ! cat /dev/shm/file; do :; done 2>/dev/null; hostname; cat /proc/sys/kernel/shm_rmid_forced"
        second = await agent.run_container("b", ["sh", "-c", f"{script}; sleep 100"], mounts=mounts, stdout=stdout)
        assert await agent.read(reader, b"1\n") == b"shared\nthe-pod\n1\n"
        for kind in ("net", "ipc", "uts"):
            kinds = {namespace(pid, kind) for pid in (agent.pid, first["pid"], second["pid"])}
            assert len(kinds) == 1, kind
        for kind in ("pid", "mnt"):
            assert namespace(first["pid"], kind) != namespace(second["pid"], kind)
        assert namespace(first["pid"], "ipc") != namespace(os.getpid(), "ipc")
        size = os.statvfs(f"/proc/{agent.pid}/root{agent.directory}/shm")
        assert size.f_blocks * size.f_frsize == 1 << 20

    agent.run(scenario())


def test_one_container_may_join_the_pid_namespace_of_another(agent: Agent) -> None:
    async def scenario() -> None:
        target = (await agent.run_container("a", ["sleep", "100"]))["pid"]
        joined = [{"type": "mount"}, {"type": "pid", "path": f"/proc/{target}/ns/pid"}]
        debugger = (await agent.run_container("b", ["sleep", "100"], linux={"namespaces": joined}))["pid"]
        assert namespace(target, "pid") == namespace(debugger, "pid")
        stranger = [{"type": "mount"}, {"type": "pid", "path": f"/proc/{os.getpid()}/ns/pid"}]
        with pytest.raises(InvalidArgument, match=r"namespaces\[1\]\.path.*does not belong"):
            await agent.create("c", ["true"], linux={"namespaces": stranger})

    agent.run(scenario())


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("kernel.pid_max", "whole host"),
        ("vm.swappiness", "whole host"),
        ("net.ipv4.ip_forward", "host's net"),
        ("kernel", "no name"),
        ("net/../kernel/pid_max", "no name"),
    ],
)
def test_sysctls_that_are_not_the_pods_are_refused_by_name(agent: Agent, key: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words) as raised:
        agent.run(agent.call("setup", hostname="", sysctls={key: "1"}, shm_bytes=0))
    assert key in raised.value.message


def test_out_of_memory_is_told_before_the_exit(agent: Agent) -> None:
    async def scenario() -> None:
        limits = {"resources": {"memory": {"limit": 16 << 20, "swap": 16 << 20}}}
        await agent.run_container("c", ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"], linux=limits)
        assert (await agent.call("task.wait", id="c"))["exit_status"] == 137
        topics: list[str] = []
        client = await agent.connect()
        client.on_event = lambda _, topic, __: topics.append(topic)
        await agent.call("info")
        assert topics == ["task.oom", "task.exit"]

    agent.run(scenario())


def test_stats_follow_the_load_and_update_changes_the_limits(agent: Agent) -> None:
    async def scenario() -> None:
        await agent.run_container("c", ["sh", "-c", "while :; do :; done"])
        before = (await agent.call("task.stats", id="c"))["stats"]
        await agent.loop.sleep(0.2)
        after = (await agent.call("task.stats", id="c"))["stats"]
        assert before["version"] == cgroup.current().version
        if before["version"] == 1:
            assert after["cpu"]["usage"]["total"] > before["cpu"]["usage"]["total"] > 0
            assert after["memory"]["usage"]["usage"] > 0
            assert after["pids"]["current"] == 1
        else:
            assert after["cpu"]["usage_usec"] > before["cpu"]["usage_usec"] > 0
            assert after["memory"]["usage"] > 0
            assert after["pids"]["current"] == 1
        await agent.call("task.update", id="c", resources={"memory": {"limit": 64 << 20}, "cpu": {"shares": 512}})
        updated = (await agent.call("task.stats", id="c"))["stats"]["memory"]
        assert (updated["usage"]["limit"] if before["version"] == 1 else updated["usage_limit"]) == 64 << 20

    agent.run(scenario())


def test_pause_and_resume(agent: Agent) -> None:
    async def scenario() -> None:
        stdout = agent.fifo("out")
        reader = agent.reader(stdout)
        await agent.run_container("c", ["sh", "-c", "while sleep 0.01; do echo x; done"], stdout=stdout)
        await agent.read(reader, b"x")
        await agent.call("task.pause", id="c")
        await agent.call("task.pause", id="c")  # harmless
        assert (await agent.call("task.state", id="c"))["status"] == "paused"
        with pytest.raises(WrongState, match="paused"):
            await agent.start_exec("c", "x", ["true"])
        await agent.call("task.resume", id="c")
        assert (await agent.call("task.state", id="c"))["status"] == "running"
        await agent.read(reader, b"x")
        await agent.call("task.pause", id="c")
        await agent.call("task.kill", id="c", signal=9)
        assert (await agent.finish("c"))["exit_status"] == 137

    agent.run(scenario())


def test_execs_run_side_by_side_and_have_exit_codes_of_their_own(agent: Agent) -> None:
    async def scenario() -> None:
        await agent.run_container("c", ["sleep", "100"])
        with pytest.raises(NotFound):
            await agent.call("task.wait", id="c", exec_id="x")
        tasks = [agent.loop.spawn(agent.start_exec("c", f"x{n}", ["sh", "-c", f"exit {n}"])) for n in range(4)]
        started = [(await task)["pid"] for task in tasks]
        assert all(started)  # of the host, although most of them had ended before their numbers were known
        assert len(set(started)) == len(started)
        for n in range(4):
            ended = await agent.call("task.wait", id="c", exec_id=f"x{n}")
            assert ended["exit_status"] == n
            assert await tasks[n] == {"pid": (await agent.call("task.state", id="c", exec_id=f"x{n}"))["pid"]}
            assert (await agent.call("task.delete", id="c", exec_id=f"x{n}"))["exit_status"] == n
        user = {"uid": 1000, "gid": 1000, "additionalGids": [5]}
        stdout = agent.fifo("out")
        reader = agent.reader(stdout)
        await agent.start_exec(
            "c",
            "who",
            ["sh", "-c", "id -u; echo $FOO; ls -d $PWD"],
            user=user,
            stdout=stdout,
            env=["PATH=/bin", "FOO=bar"],
            cwd="/tmp",
        )
        assert await agent.read(reader) == b"1000\nbar\n/tmp\n"
        await agent.start_exec("c", "long", ["sleep", "100"])
        await agent.call("task.kill", id="c", exec_id="long", signal=15)
        assert (await agent.call("task.wait", id="c", exec_id="long"))["exit_status"] == 143
        assert (await agent.call("task.state", id="c"))["status"] == "running"

    agent.run(scenario())


def test_an_exec_that_was_never_started_can_be_deleted(agent: Agent) -> None:
    async def scenario() -> None:
        await agent.run_container("c", ["sleep", "100"])
        await agent.call("task.exec", id="c", exec_id="x", process={"args": ["true"], "cwd": "/"})
        with pytest.raises(WrongState):
            await agent.call("task.kill", id="c", exec_id="x", signal=9)
        waiting = agent.loop.spawn(agent.call("task.wait", id="c", exec_id="x"))
        await agent.loop.sleep(0)
        assert (await agent.call("task.delete", id="c", exec_id="x"))["pid"] == 0
        assert (await waiting)["exit_status"] == 137

    agent.run(scenario())


def test_a_program_that_an_exec_does_not_find_is_named(agent: Agent) -> None:
    async def scenario() -> None:
        await agent.run_container("c", ["sleep", "100"])
        with pytest.raises(Exception, match="nonsense"):
            await agent.start_exec("c", "x", ["/nonsense"], stdout=agent.fifo("out"))
        assert (await agent.call("task.state", id="c", exec_id="x"))["status"] == "created"
        await agent.call("task.delete", id="c", exec_id="x")

    agent.run(scenario())


def test_more_layers_than_a_page_holds(agent: Agent) -> None:
    async def scenario(count: int, length: int) -> None:
        layers = []
        for number in range(count):
            layer = agent.base / "layers" / f"{number:03d}-{'x' * length}"
            layer.mkdir(parents=True)
            (layer / f"file{number}").write_text("")
            layers.append(str(layer))
        agent.rootfs()  # makes the image
        options = ["ro", f"lowerdir={':'.join([*layers, str(agent.base / 'image')])}"]
        rootfs = [{"type": "overlay", "source": "overlay", "target": "", "options": options}]
        stdout = agent.fifo(f"out{length}")
        reader = agent.reader(stdout)
        await agent.run_container(
            "c", ["sh", "-c", "echo /file*"], rootfs=rootfs, stdout=stdout, root={"readonly": True}
        )
        assert len((await agent.read(reader)).split()) == count
        await agent.finish("c")

    agent.run(scenario(60, 60))  # fits once the common directory is cut off
    for layer in (agent.base / "layers").iterdir():
        (layer / next(layer.iterdir()).name).unlink()
        layer.rmdir()
    agent.run(scenario(60, 120))  # does not fit even then


def test_a_read_only_bind_mount_as_root(agent: Agent) -> None:
    async def scenario() -> None:
        agent.rootfs()
        rootfs = [{"type": "bind", "source": str(agent.base / "image"), "target": "", "options": ["rbind", "ro"]}]
        stderr = agent.fifo("err")
        reader = agent.reader(stderr)
        await agent.run_container("c", ["sh", "-c", "echo > /file"], rootfs=rootfs, stderr=stderr)
        assert b"Read-only" in await agent.read(reader)
        await agent.finish("c")
        assert not (agent.base / "image" / "file").exists()
        assert (agent.base / "image" / "bin" / "busybox").exists()

    agent.run(scenario())


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"mounts": [{"destination": "/x", "type": "bind", "source": "/tmp", "options": ["rbind", "rshared"]}]},
            InvalidArgument,
            r"mounts\[0\].*rshared on /x",
        ),
        ({"linux": {"uidMappings": [{"containerID": 0}]}}, Unimplemented, "user namespaces"),
        ({"linux": {"namespaces": [{"type": "user"}]}}, Unimplemented, r"namespaces\[0\].*user namespaces"),
        ({"linux": {"rootfsPropagation": "shared"}}, InvalidArgument, "rootfsPropagation"),
        (
            {"rootfs": [{"type": "overlay", "source": "x", "target": "../..", "options": []}]},
            InvalidArgument,
            "leads out",
        ),
        ({"rootfs": [{"type": "nosuchfs", "source": "x", "target": "", "options": []}]}, Exception, r"rootfs\[0\]"),
        ({"rootfs": [{"type": "ext4", "source": "x", "target": "", "options": ["loop"]}]}, Unimplemented, "loop"),
        ({"rootfs": ["x"]}, InvalidArgument, r"rootfs\[0\]"),
    ],
)
def test_what_cannot_be_kept_is_refused_and_leaves_nothing(
    agent: Agent, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    async def scenario() -> None:
        with pytest.raises(error, match=words):
            await agent.create("c", ["true"], **changes)
        assert os.listdir(agent.directory / "containers") == []

    agent.run(scenario())


def test_systemd_spelling_of_the_cgroup(agent: Agent) -> None:
    async def scenario() -> None:
        path = f"kuasar-agent-test.slice:{agent.name}:c"
        created = await agent.run_container("c", ["sleep", "100"], linux={"cgroupsPath": path})
        wanted = f"/kuasar.slice/kuasar-agent.slice/kuasar-agent-test.slice/{agent.name}-c.scope"
        assert wanted in Path(f"/proc/{created['pid']}/cgroup").read_text()
        await agent.call("task.kill", id="c", signal=9)
        await agent.finish("c")
        assert not cgroup.exists(wanted)
        await cgroup.destroy(agent.loop, "/kuasar.slice")

    agent.run(scenario())


def test_nothing_of_a_pod_outlives_its_agent(agent: Agent) -> None:
    async def scenario() -> None:
        pids = [(await agent.run_container(name, ["sh", "-c", "sleep 100 & sleep 100"]))["pid"] for name in "ab"]
        pids += [pid for pid, _ in (await agent.call("task.pids", id="a"))["pids"]]
        assert agent.client is not None
        pidfds = [os.pidfd_open(pid) for pid in pids]
        waiting = agent.loop.spawn(agent.client.call("task.wait", {"id": "a"}))
        await agent.loop.sleep(0)
        os.kill(agent.pid, signal.SIGKILL)
        for pidfd in pidfds:
            await agent.loop.wait_readable(pidfd)
            agent.loop.remove_reader(pidfd)
            os.close(pidfd)
        with pytest.raises(Unavailable):
            await waiting
        # The images were mounted in the agent's namespace only, which is gone: the directories can be removed.
        for name in "ab":
            os.rmdir(agent.directory / "containers" / name / "rootfs")

    agent.run(scenario())


@pytest.mark.parametrize(("obeys", "grace"), [(True, 10.0), (False, 0.2), (False, 0.0)])
def test_shutdown_with_and_without_grace(agent: Agent, obeys: bool, grace: float) -> None:
    async def scenario() -> None:
        stdout = agent.fifo("out")
        reader = agent.reader(stdout)
        trap = "trap 'echo bye; exit 0' TERM" if obeys else "trap '' TERM"
        await agent.run_container("c", ["sh", "-c", f"{trap}; echo up; while :; do sleep 0.01; done"], stdout=stdout)
        await agent.read(reader, b"up\n")
        await agent.call("shutdown", grace=grace)
        await agent.loop.wait_readable(agent.pidfd)
        agent.loop.remove_reader(agent.pidfd)
        assert await agent.read(reader) == (b"bye\n" if obeys else b"")

    agent.run(scenario())


def test_a_pod_in_the_pid_namespace_of_the_host(base: Path) -> None:
    with running_agent(base, "hostpid", flags=CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC) as agent:

        async def scenario() -> None:
            namespaces = [{"type": "mount"}, {"type": "ipc", "path": f"/proc/{agent.pid}/ns/ipc"}]
            created = await agent.run_container("c", ["sh", "-c", "exit 5"], linux={"namespaces": namespaces})
            assert (await agent.finish("c")) | {"exited_at": 0} == created | {"exit_status": 5, "exited_at": 0}
            assert len(await events_of(agent, "task.exit")) == 1

        agent.run(scenario())
