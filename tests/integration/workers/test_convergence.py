"""Stop, Kill and Shutdown come to an end from every state and whatever hangs, is full, or is gone; what blocks them is
named, and once it is away a repetition succeeds."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from kuasar.agent import kernel
from kuasar.core import tombstones
from kuasar.core.errors import BackendFailed, DeadlineExceeded, KuasarError, NotFound, WrongState
from tests import needs
from tests.integration.workers.rig import Rig, rig, run

pytestmark = needs.ROOT


async def ready(r: Rig) -> int:
    """A started sandbox; gives the agent's pid."""
    await r.start_zygote()
    await r.start_worker()
    await r.create()
    return int((await r.call("sandbox.start"))["pid"])


async def running(r: Rig) -> int:
    """A started sandbox with the running container c1; gives the agent's pid."""
    pid = await ready(r)
    await r.create_container("c1", "sleep 100")
    await r.call("task.start", id="c1", exec_id="")
    return pid


async def gone(r: Rig) -> None:
    """Shut down, and nothing is left."""
    await r.call("sandbox.shutdown")
    await r.nothing_held()
    assert not r.directory.exists()


def tombstone(r: Rig) -> tombstones.Tombstone:
    found = tombstones.read_all(str(r.root / "state"))
    assert [each.sandbox for each in found] == [r.sandbox]
    return found[0]


def test_an_agent_that_hangs_is_killed() -> None:
    async def scenario() -> None:
        async with rig() as r:
            os.kill(await ready(r), signal.SIGSTOP)
            assert (await r.call("sandbox.stop", timeout=0.2))["stage"] == "killed"
            await gone(r)

    run(scenario())


def test_a_sigkill_that_the_agent_does_not_carry_out_ends_the_machine() -> None:
    async def scenario() -> None:
        async with rig() as r:
            pid = await running(r)
            os.kill(pid, signal.SIGSTOP)
            await r.call("task.kill", id="c1", exec_id="", signal=signal.SIGKILL, all=False)
            assert (await r.call("task.wait", key="", id="c1", exec_id=""))["exit_status"] == 137
            ended = await r.call("sandbox.wait", key="")
            assert "did not carry out a SIGKILL" in ended["reason"]
            await r.call("task.delete", id="c1", exec_id="")
            await gone(r)

    run(scenario())


def test_what_containerd_asks_when_it_starts_is_answered_while_the_agent_hangs() -> None:
    async def scenario() -> None:
        async with rig() as r:
            pid = await ready(r)
            await r.create_container("c1", "sleep 100")
            process = {"key": "", "id": "c1", "exec_id": ""}
            asked = ("task.state", "task.connect", "task.pids")

            async def seen() -> list[dict[str, Any]]:
                return [await r.call(op, **process) for op in asked]

            for change, status in (("", "created"), ("task.start", "running"), ("task.pause", "paused")):
                if change:
                    await r.call(change, id="c1", exec_id="")
                by_agent = await seen()
                os.kill(pid, signal.SIGSTOP)
                begun = time.monotonic()
                by_record = await seen()
                assert time.monotonic() - begun < 10  # 1 s each
                with pytest.raises(DeadlineExceeded):  # of an exec nothing is remembered
                    await r.router.call(
                        r.sandbox, "task.state", {"id": "c1", "exec_id": "e1"}, deadline=time.monotonic() + 0.2
                    )
                os.kill(pid, signal.SIGCONT)
                assert by_record[0]["status"] == status
                assert by_record[0] == by_agent[0]
                assert by_record[1]["task_pid"] == by_agent[1]["task_pid"]
                assert by_record[2] == by_agent[2]
            await r.call("task.resume", id="c1", exec_id="")
            os.kill(pid, signal.SIGSTOP)
            assert (await r.call("task.state", **process))["status"] == "running"
            os.kill(pid, signal.SIGCONT)
            await gone(r)

    run(scenario())


def test_a_successor_answers_before_it_has_reached_the_agent() -> None:
    async def scenario() -> None:
        async with rig() as r:
            pid = await running(r)
            os.kill(pid, signal.SIGSTOP)
            r.kill_worker()
            await r.start_worker()
            assert (await r.call("sandbox.status", key="", verbose=False))["state"] == "ready"
            assert (await r.call("task.state", key="", id="c1", exec_id=""))["status"] == "running"
            stats = asyncio.create_task(r.call("task.stats", key="", id="c1", exec_id=""))
            await asyncio.sleep(0.2)
            assert not stats.done()
            os.kill(pid, signal.SIGCONT)
            assert (await stats)["stats"]
            await gone(r)

    run(scenario())


def test_a_stop_ends_a_start_that_hangs() -> None:
    async def scenario() -> None:
        async with rig() as r:
            await r.start_zygote()
            await r.start_worker()
            await r.create()
            r.arm("agent.request", "hang:30")
            starting = asyncio.create_task(r.call("sandbox.start"))
            await r.until(lambda: r.hits("agent.request"))
            assert (await r.call("sandbox.stop", timeout=5.0))["stage"] == "gone"
            with pytest.raises(WrongState, match="was stopped meanwhile"):
                await starting
            await r.nothing_held()
            assert (await r.call("sandbox.status", key="", verbose=False))["state"] == "created"
            assert tombstone(r).phase == "start: agent was done"
            await gone(r)

    run(scenario())


def test_ends_that_overlap_all_succeed() -> None:
    async def scenario() -> None:
        async with rig() as r:
            pid = await ready(r)
            calls = [
                r.call("sandbox.stop", timeout=1.0),
                r.call("sandbox.shutdown"),
                r.call("sandbox.stop", timeout=0.0),
            ]
            os.kill(pid, signal.SIGKILL)
            await asyncio.gather(*calls)
            await r.nothing_held()

    run(scenario())


def test_a_busy_mount_is_named_and_nothing_below_it_is_deleted() -> None:
    async def scenario() -> None:
        async with rig() as r:
            await ready(r)
            volume, target = r.root / "volume", r.directory / "files" / "foreign"
            volume.mkdir()
            (volume / "precious").write_text("data")
            target.mkdir()
            kernel.mount(str(volume), str(target), "", kernel.MS_BIND)
            user = await asyncio.create_subprocess_exec("sleep", "1000", cwd=target)
            try:
                for _ in range(2):
                    with pytest.raises(BackendFailed, match=str(target)) as caught:
                        await r.call("sandbox.shutdown")
                    assert f"process {user.pid} (sleep)" in caught.value.message
            finally:
                user.kill()
                await user.wait()
                kernel.umount(str(target))
            await gone(r)
            assert (volume / "precious").read_text() == "data"

    run(scenario())


def test_a_lost_record_costs_no_volume() -> None:
    """A new worker that finds no record must not delete what is mounted below the directory."""

    async def scenario() -> None:
        async with rig() as r:
            await r.start_zygote()
            worker, _ = await r.start_worker()
            await r.create()
            volume, target = r.root / "volume", r.directory / "shared"
            volume.mkdir()
            (volume / "precious").write_text("data")
            target.mkdir()
            kernel.mount(str(volume), str(target), "", kernel.MS_BIND)
            try:
                worker.kill()
                worker.wait()
                (r.directory / "sandbox.msgpack").write_bytes(b"\xff rubbish")
                _, hello = await r.start_worker()
                assert hello.state == "new"
                await r.call("sandbox.shutdown")
                assert (r.directory / "sandbox.msgpack.damaged").exists(), "this is how the reconciler finds the rest"
            finally:
                kernel.umount(str(target))
            assert (volume / "precious").read_text() == "data"

    run(scenario())


def fill(directory: Path) -> Path:
    """Use up the disk that ``directory`` is on."""
    path = directory / "ballast"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return path


def test_a_full_disk_refuses_a_start_and_lets_everything_end() -> None:
    async def scenario() -> None:
        async with rig(state_kib=512) as r:
            await r.start_zygote()
            await r.start_worker()
            await r.create()
            ballast = fill(r.root / "state")
            with pytest.raises(BackendFailed, match="No space left on device"):
                await r.call("sandbox.start")
            assert (await r.call("sandbox.status", key="", verbose=False))["state"] == "created"
            ballast.unlink()
            await r.nothing_held()
            await r.call("sandbox.start")
            await r.create_container("c1", "sleep 100")
            await r.call("task.start", id="c1", exec_id="")
            ballast = fill(r.root / "state")
            with pytest.raises(KuasarError, match="No space left on device"):
                await r.create_container("c2", "sleep 100")
            await r.call("task.kill", id="c1", exec_id="", signal=signal.SIGKILL, all=False)
            assert (await r.call("task.wait", key="", id="c1", exec_id=""))["exit_status"] == 137
            await r.call("task.delete", id="c1", exec_id="")
            await r.call("sandbox.stop", timeout=5.0)
            await gone(r)
            ballast.unlink()

    run(scenario())


def test_a_full_disk_does_not_keep_a_new_worker_from_adopting() -> None:
    async def scenario() -> None:
        async with rig(state_kib=512) as r:
            await r.start_zygote()
            worker, _ = await r.start_worker()
            await r.create()
            pid = (await r.call("sandbox.start"))["pid"]
            ballast = fill(r.root / "state")
            worker.kill()
            worker.wait()
            _, hello = await r.start_worker()
            assert (hello.state, hello.generation) == ("ready", 2)
            assert (await r.call("sandbox.status", key="", verbose=False))["pid"] == pid
            await gone(r)
            ballast.unlink()

    run(scenario())


def test_a_state_directory_that_becomes_read_only_refuses_what_is_new_and_loses_nothing() -> None:
    async def scenario() -> None:
        async with rig() as r, AsyncExitStack() as undo:
            sandboxes = str(r.directory.parent)
            kernel.mount(sandboxes, sandboxes, "", kernel.MS_BIND)
            undo.callback(kernel.umount, sandboxes)
            await r.start_zygote()
            worker, _ = await r.start_worker()
            await r.create()
            pid = (await r.call("sandbox.start"))["pid"]
            await r.create_container("c1", "sleep 100")
            await r.call("task.start", id="c1", exec_id="")
            kernel.mount("", sandboxes, "", kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY)
            with pytest.raises(KuasarError, match="Read-only file system"):
                await r.create_container("c2", "sleep 100")
            for _ in range(2):
                worker.kill()
                worker.wait()
                worker, hello = await r.start_worker()
                assert hello.state == "ready"
            assert (await r.call("sandbox.status", key="", verbose=False))["pid"] == pid
            await r.call("task.kill", id="c1", exec_id="", signal=signal.SIGKILL, all=False)
            assert (await r.call("task.wait", key="", id="c1", exec_id=""))["exit_status"] == 137
            kernel.mount("", sandboxes, "", kernel.MS_REMOUNT | kernel.MS_BIND)
            worker.kill()
            worker.wait()
            _, hello = await r.start_worker()
            assert (hello.state, hello.generation) == ("ready", 2)
            await r.create_container("c2", "exit 4")
            await r.call("task.start", id="c2", exec_id="")
            assert (await r.call("task.wait", key="", id="c2", exec_id=""))["exit_status"] == 4
            await gone(r)

    run(scenario())


def test_a_vanished_bundle_does_not_matter() -> None:
    async def scenario() -> None:
        async with rig() as r:
            await ready(r)
            await r.create_container("c1", "sleep 100")
            await r.call("task.start", id="c1", exec_id="")
            # the image stays: it is the root file system, which lives in the bundle's directory only in this test
            (r.root / "bundles" / "c1" / "config.json").unlink()
            await r.call("task.kill", id="c1", exec_id="", signal=signal.SIGKILL, all=False)
            assert (await r.call("task.wait", key="", id="c1", exec_id=""))["exit_status"] == 137
            shutil.rmtree(r.root / "bundles")
            await r.call("task.delete", id="c1", exec_id="")
            with pytest.raises(NotFound):
                await r.call("task.state", key="", id="c1", exec_id="")
            await gone(r)

    run(scenario())


def test_why_a_sandbox_ended_is_kept() -> None:
    async def scenario() -> None:
        async with rig() as r:
            pid = await ready(r)
            ending = asyncio.create_task(r.call("sandbox.wait", key=""))
            await asyncio.sleep(0)
            os.kill(pid, signal.SIGKILL)
            ended = await ending
            await gone(r)
            kept = tombstone(r)
            assert (kept.reason, kept.exit_status, kept.phase) == ("the agent died", 255, "running")
            assert (kept.engine, kept.namespace, kept.pod) == ("runc", "k8s.io", "pod1")
            assert kept.created_at < kept.started_at < kept.ended_at == ended["exited_at"]
            assert any("serving" in line for line in kept.log)

    run(scenario())
