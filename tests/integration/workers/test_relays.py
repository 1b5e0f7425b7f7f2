"""Standard streams relayed by the worker: exact to the byte whoever is killed, and let go in the end."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from kuasar.core.errors import InvalidArgument
from kuasar.supervisor.keeper_client import Keeper
from tests import needs
from tests.integration.workers.rig import SECONDS, Rig, rig, run

pytestmark = needs.ROOT

MEGABYTE = 1 << 20
KILLS = 12


class Relaying:
    """A started sandbox whose worker relays, with a keeper."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.worker: subprocess.Popen[bytes]
        self.keeper_process: subprocess.Popen[bytes]
        self.ends: list[int] = []

    async def start(self) -> int:
        """Gives the agent's pid."""
        self.rig.worker_module = "tests.integration.workers.relaying"
        await self.rig.start_zygote()
        self.keeper_process = await self.rig.start_keeper()
        self.worker, _ = await self.rig.start_worker()
        await self.rig.create()
        return int((await self.rig.call("sandbox.start"))["pid"])

    async def replace_worker(self) -> None:
        """kill -9, and a successor that has greeted."""
        self.worker.kill()
        self.worker.wait()
        self.worker, _ = await self.rig.start_worker()

    async def run(self, command: str, files: dict[str, bytes], **streams: Any) -> None:
        """Container ``c`` with the shell's ``command``, ``cat`` and some files in its image."""
        bundle = self.rig.bundle("c", command)
        for name, data in files.items():
            with open(f"{bundle}/image/{name}", "wb") as file:
                file.write(data)
        os.symlink("sh", f"{bundle}/image/bin/cat")
        rootfs = [{"type": "bind", "source": f"{bundle}/image", "target": "", "options": ["rbind", "rw"]}]
        nothing: dict[str, Any] = {"stdin": "", "stdout": "", "stderr": "", "terminal": False}
        await self.rig.call("task.create", id="c", bundle=bundle, rootfs=rootfs, **(nothing | streams))
        await self.rig.call("task.start", id="c", exec_id="")

    def fifo(self, name: str) -> str:
        path = f"{self.rig.root}/{name}"
        os.mkfifo(path)
        return path

    def open(self, path: str, mode: int) -> int:
        """A non-blocking end, closed at the end of the test."""
        fd = os.open(path, mode | os.O_NONBLOCK)
        self.ends.append(fd)
        return fd

    def kept(self) -> list[str]:
        keeper = Keeper(f"{self.rig.root}/k")
        try:
            return keeper.list("sandbox/")
        finally:
            keeper.close()


@asynccontextmanager
async def relaying() -> AsyncIterator[tuple[Relaying, int]]:
    async with rig() as r:
        made = Relaying(r)
        try:
            yield made, await made.start()
        finally:
            for fd in made.ends:
                os.close(fd)


class Reader:
    """Reads a FIFO in the background, no further than it is allowed to."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.data = bytearray()
        self.ended = asyncio.Event()
        self._allowed = 0
        self._loop = asyncio.get_running_loop()

    def allow(self, size: int) -> None:
        self._allowed = size
        self._loop.add_reader(self.fd, self._readable)

    def _readable(self) -> None:
        wanted = min(65536, self._allowed - len(self.data))
        if wanted <= 0:
            self._loop.remove_reader(self.fd)
            return
        with suppress(BlockingIOError):
            data = os.read(self.fd, wanted)
            self.data += data
            if not data:
                self._loop.remove_reader(self.fd)
                self.ended.set()


async def feed(fd: int, data: bytes) -> None:
    """Write all of ``data`` to a FIFO, as it is taken."""
    loop = asyncio.get_running_loop()
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view[:50_000]) :]
        except BlockingIOError:
            writable = asyncio.Event()
            loop.add_writer(fd, writable.set)
            await writable.wait()
            loop.remove_writer(fd)


def assert_same(got: bytes | bytearray, wanted: bytes) -> None:
    """Without printing megabytes."""
    if got == wanted:
        return
    at = next((i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted)))
    pytest.fail(f"{len(got)} bytes of {len(wanted)}, first difference at {at}")


def test_a_worker_that_is_killed_again_and_again_loses_and_doubles_nothing() -> None:
    """Input comes back on standard output while a file goes to standard error; the worker dies at random instants."""
    size = 8 * MEGABYTE
    typed, big = os.urandom(size), os.urandom(size)

    async def scenario() -> None:
        async with relaying() as (r, _):
            paths = {field: r.fifo(field) for field in ("stdin", "stdout", "stderr")}
            readers = [Reader(r.open(paths[field], os.O_RDONLY)) for field in ("stdout", "stderr")]
            writer = os.open(paths["stdin"], os.O_RDWR | os.O_NONBLOCK)
            await r.run("cat /big >&2 & cat; wait; exit 6", {"big": big}, **paths)
            waiting = asyncio.create_task(r.rig.call("task.wait", key="", id="c", exec_id=""))
            feeding = asyncio.create_task(feed(writer, typed))
            for kill in range(1, KILLS + 1):
                for reader in readers:  # held back, so that there is something on the way at every death
                    reader.allow(size * kill // (KILLS + 1))
                await asyncio.sleep(random.random() * 0.03)
                await r.replace_worker()
            for reader in readers:
                reader.allow(2 * size)  # what is doubled is to be seen
            await asyncio.wait_for(feeding, SECONDS)
            await r.rig.call("task.close_io", id="c", exec_id="", stdin=True)
            await r.replace_worker()
            os.close(writer)
            for reader in readers:
                await asyncio.wait_for(reader.ended.wait(), SECONDS)
            assert_same(readers[0].data, typed)
            assert_same(readers[1].data, big)
            ended = await waiting
            assert (ended["exit_status"], ended["stdout_bytes"], ended["stderr_bytes"]) == (6, size, size)
            await r.replace_worker()
            assert (await r.rig.call("task.delete", id="c", exec_id=""))["exit_status"] == 6
            assert r.kept() == []
            await r.rig.call("sandbox.shutdown")

    run(scenario())


def test_a_keeper_that_was_replaced_is_told_everything_again() -> None:
    size = 2 * MEGABYTE
    big = os.urandom(size)

    async def scenario() -> None:
        async with relaying() as (r, _):
            stdout = r.fifo("out")
            reader = Reader(r.open(stdout, os.O_RDONLY))
            await r.run("cat /big", {"big": big}, stdout=stdout)
            for turn in range(1, 5):
                reader.allow(size * turn // 5)
                r.keeper_process.kill()
                r.keeper_process.wait()
                r.keeper_process = await r.rig.start_keeper()
                await r.rig.until(lambda: r.kept() == ["sandbox/pod1/stdio/c//stdout"])
                await r.replace_worker()
            reader.allow(2 * size)  # what is doubled is to be seen
            await asyncio.wait_for(reader.ended.wait(), SECONDS)
            assert_same(reader.data, big)
            await r.rig.call("sandbox.shutdown")
            assert r.kept() == []

    run(scenario())


def test_without_a_keeper_everything_works_while_the_worker_lives() -> None:
    big = os.urandom(MEGABYTE)

    async def scenario() -> None:
        async with relaying() as (r, _):
            r.keeper_process.kill()
            r.keeper_process.wait()
            stdout = r.fifo("out")
            reader = Reader(r.open(stdout, os.O_RDONLY))
            await r.run("cat /big; cat /big", {"big": big}, stdout=stdout)
            reader.allow(len(big))
            await r.rig.until(lambda: len(reader.data) == len(big))
            # Both are dead now: it goes on, though something may be missing in between.
            await r.replace_worker()
            reader.allow(2 * len(big) + 1)
            await asyncio.wait_for(reader.ended.wait(), SECONDS)
            assert (await r.rig.call("task.wait", key="", id="c", exec_id=""))["stdout_bytes"] == 2 * len(big)
            assert_same(reader.data[: len(big)], big)
            assert len(reader.data) > MEGABYTE
            await r.rig.call("sandbox.shutdown")

    run(scenario())


def test_what_a_dead_machine_has_said_is_read_to_its_end() -> None:
    async def scenario() -> None:
        async with relaying() as (r, agent):
            paths = {"stdin": r.fifo("in"), "stdout": r.fifo("out")}
            reader = Reader(r.open(paths["stdout"], os.O_RDONLY))
            await r.run("echo last words; cat", {}, **paths)
            reader.allow(4)
            await r.rig.until(lambda: reader.data == b"last")
            os.kill(agent, signal.SIGKILL)
            assert (await r.rig.call("task.wait", key="", id="c", exec_id=""))["exit_status"] == 137
            await r.replace_worker()
            reader.allow(100)
            await asyncio.wait_for(reader.ended.wait(), SECONDS)
            assert reader.data == b"last words\n"
            state = await r.rig.call("task.state", key="", id="c", exec_id="")
            assert (state["stdin"], state["stdout"]) == (paths["stdin"], paths["stdout"])
            await r.rig.call("task.delete", id="c", exec_id="")
            assert r.kept() == []
            await r.rig.call("sandbox.shutdown")

    run(scenario())


def test_the_streams_of_an_exec_are_let_go_with_it() -> None:
    async def scenario() -> None:
        async with relaying() as (r, _):
            await r.run("cat", {}, stdin=r.fifo("in"))
            paths = {"stdin": r.fifo("xin"), "stdout": r.fifo("xout"), "stderr": ""}
            process = {"args": ["/bin/cat"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
            body: dict[str, Any] = {"id": "c", "exec_id": "x", "process": process, "terminal": False}
            with pytest.raises(InvalidArgument, match="stderr"):
                await r.rig.call("task.exec", **body, **(paths | {"stderr": "/etc/hostname"}))
            assert r.kept() == ["sandbox/pod1/stdio/c//stdin"]
            await r.rig.call("task.exec", **body, **paths)
            state = await r.rig.call("task.state", key="", id="c", exec_id="x")
            assert {field: state[field] for field in paths} == paths
            assert len(r.kept()) == 3
            await r.replace_worker()  # between task.exec and task.start
            await r.rig.call("task.start", id="c", exec_id="x")
            reader = Reader(r.open(paths["stdout"], os.O_RDONLY))
            reader.allow(100)
            writer = os.open(paths["stdin"], os.O_WRONLY | os.O_NONBLOCK)
            os.write(writer, b"there and back")
            os.close(writer)
            await r.rig.call("task.close_io", id="c", exec_id="x", stdin=True)
            await asyncio.wait_for(reader.ended.wait(), SECONDS)
            assert reader.data == b"there and back"
            assert (await r.rig.call("task.wait", key="", id="c", exec_id="x"))["exit_status"] == 0
            await r.rig.call("task.delete", id="c", exec_id="x")
            assert r.kept() == ["sandbox/pod1/stdio/c//stdin"]
            assert "execs" not in r.rig.record()["containers"]["c"] or not r.rig.record()["containers"]["c"]["execs"]
            await r.rig.call("sandbox.shutdown")
            assert r.kept() == []

    run(scenario())


def test_a_create_that_fails_lets_go_of_its_streams() -> None:
    async def scenario() -> None:
        async with relaying() as (r, _):
            with pytest.raises(InvalidArgument, match="stderr"):
                await r.rig.create_container("c", "true", stdout=r.fifo("out"), stderr="/nonexistent/fifo")
            assert r.kept() == []
            assert r.rig.record()["containers"] == {}
            await r.rig.call("sandbox.shutdown")

    run(scenario())
