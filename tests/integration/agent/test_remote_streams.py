"""Standard streams over the agent channel: the real agent at one end, the worker's relays at the other."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kuasar.agent.client import AgentClient
from kuasar.agent.protocol import WINDOW_BYTES, Data, Window
from kuasar.core.errors import InvalidArgument
from kuasar.workers.stdio import Stdio
from tests.integration.agent.harness import SECONDS, Agent, make_image
from tests.integration.agent.test_streams import MEGABYTES, big_file

NOTHING = {"stdin": "", "stdout": "", "stderr": "", "terminal": False}


class Relayed:
    """The agent with relays beside it, as a worker has them."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.stdio = Stdio(agent.loop, "pod", None)

    async def connect(self) -> AgentClient:
        """A (new) connection, which preempts the one before."""
        client = await self.agent.connect()
        self.stdio.connected(client)
        return client

    async def run(self, args: list[str], by_exec: bool, **streams: Any) -> str:
        """Start ``args`` as container ``c`` or as an exec of it; gives the exec id."""
        exec_id = "x" if by_exec else ""
        paths = NOTHING | streams
        told = self.stdio.open("c", exec_id, paths) | {"terminal": paths["terminal"]}
        if self.agent.client is None:
            await self.connect()
        if by_exec:
            await self.agent.run_container("c", ["sleep", "100"])
            await self.agent.start_exec("c", "x", args, **told)
        else:
            await self.agent.run_container("c", args, **told)
        return exec_id

    async def end(self, exec_id: str) -> dict[str, Any]:
        return await self.agent.call("task.wait", id="c", exec_id=exec_id)


@pytest.fixture
def relayed(agent: Agent) -> Iterator[Relayed]:
    made = Relayed(agent)
    yield made
    made.stdio.close_all()


both = pytest.mark.parametrize("by_exec", [False, True])


@both
def test_10_megabytes_on_both_outputs_at_once_are_byte_exact(relayed: Relayed, by_exec: bool) -> None:
    agent = relayed.agent
    digest = big_file(agent)

    async def scenario() -> None:
        paths = {field: agent.fifo(field) for field in ("stdout", "stderr")}
        readers = [agent.loop.spawn(agent.read(agent.reader(path))) for path in paths.values()]
        exec_id = await relayed.run(["sh", "-c", "cat /big >&2 & cat /big; wait"], by_exec, **paths)
        for reader in readers:
            assert hashlib.sha256(await reader).hexdigest() == digest
        ended = await relayed.end(exec_id)
        assert ended["exit_status"] == 0
        assert (ended["stdout_bytes"], ended["stderr_bytes"]) == (MEGABYTES << 20, MEGABYTES << 20)

    agent.run(scenario())


@both
def test_a_late_reader_blocks_its_own_process_only(relayed: Relayed, by_exec: bool) -> None:
    agent = relayed.agent
    digest = big_file(agent)

    async def scenario() -> None:
        stdout = agent.fifo("out")
        exec_id = await relayed.run(["cat", "/big"], by_exec, stdout=stdout)
        # Another process of the same container has its output passed on while that one stands still.
        other = agent.fifo("other")
        reader = agent.reader(other)
        told = relayed.stdio.open("c", "y", NOTHING | {"stdout": other})
        await agent.start_exec("c", "y", ["echo", "not blocked"], **told)
        assert await agent.read(reader) == b"not blocked\n"
        assert (await agent.call("task.state", id="c", exec_id=exec_id))["status"] == "running"
        data = await agent.read(agent.reader(stdout))
        assert hashlib.sha256(data).hexdigest() == digest
        assert (await relayed.end(exec_id))["exit_status"] == 0

    agent.run(scenario())


@both
def test_a_reader_that_never_comes_does_not_delay_the_exit(relayed: Relayed, by_exec: bool) -> None:
    """What a dead process has left behind is taken in any case, and is there for a reader that comes after all."""
    agent = relayed.agent
    data = os.urandom(400 * 1024)  # fits into pipe, ring and spool, so that the process can end
    make_image(agent.base / "image")
    (agent.base / "image" / "data").write_bytes(data)

    async def scenario() -> None:
        stdout = agent.fifo("out")
        exec_id = await relayed.run(["cat", "/data"], by_exec, stdout=stdout)
        assert (await relayed.end(exec_id))["stdout_bytes"] == len(data)
        assert await agent.read(agent.reader(stdout)) == data

    agent.run(scenario())


@both
def test_a_killed_process_that_nobody_reads_ends_at_once(relayed: Relayed, by_exec: bool) -> None:
    agent = relayed.agent
    big = agent.base / "image" / "big"
    big_file(agent)

    async def scenario() -> None:
        stdout = agent.fifo("out")
        reader = agent.reader(stdout)  # open, so that it sees the end of a stream without a byte, too
        exec_id = await relayed.run(["cat", "/big"], by_exec, stdout=stdout)
        await agent.call("task.kill", id="c", exec_id=exec_id, signal=9, all=False)
        ended = await relayed.end(exec_id)
        assert ended["exit_status"] == 137
        data = await agent.read(reader)
        assert len(data) == ended["stdout_bytes"]
        assert big.read_bytes().startswith(data)

    agent.run(scenario())


@both
def test_input_of_some_megabytes_arrives_and_ends_with_close_io(relayed: Relayed, by_exec: bool) -> None:
    agent = relayed.agent
    data = os.urandom(3 << 20)

    async def scenario() -> None:
        paths = {"stdin": agent.fifo("in"), "stdout": agent.fifo("out")}
        reader = agent.loop.spawn(agent.read(agent.reader(paths["stdout"])))
        writer = os.open(paths["stdin"], os.O_RDWR | os.O_NONBLOCK)
        exec_id = await relayed.run(["md5sum"], by_exec, **paths)
        await write(agent, writer, data)
        # The caller goes away and comes back: that ends nothing.
        os.close(writer)
        writer = os.open(paths["stdin"], os.O_WRONLY | os.O_NONBLOCK)
        await write(agent, writer, b"the end")
        assert relayed.stdio.close_stdin("c", exec_id)
        os.close(writer)
        digest = hashlib.md5(data + b"the end", usedforsecurity=False).hexdigest()
        assert (await reader).split()[0].decode() == digest
        assert (await relayed.end(exec_id))["exit_status"] == 0

    agent.run(scenario())


async def write(agent: Agent, fd: int, data: bytes) -> None:
    """All of ``data``, as the reader takes it."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            writable = agent.loop.future()
            agent.loop.add_writer(fd, lambda: writable.set_result(None))  # noqa: B023 - awaited in this turn
            await writable
            agent.loop.remove_writer(fd)


def test_a_process_that_does_not_read_its_input_holds_a_bounded_amount(relayed: Relayed) -> None:
    agent = relayed.agent

    async def scenario() -> None:
        stdin = agent.fifo("in")
        writer = os.open(stdin, os.O_RDWR | os.O_NONBLOCK)
        await relayed.run(["sleep", "100"], False, stdin=stdin)
        sent, quiet = 0, time.monotonic() + 0.3
        while time.monotonic() < quiet:  # full for so long: nothing takes any more
            try:
                sent += os.write(writer, bytes(65536))
                quiet = time.monotonic() + 0.3
            except BlockingIOError:
                await agent.call("info")
        os.close(writer)
        assert sent <= WINDOW_BYTES + 2 * 65536 + 65536  # the window, two pipes, and a page here and there

    agent.run(scenario())


@both
def test_a_terminal_with_input_and_resize(relayed: Relayed, by_exec: bool) -> None:
    agent = relayed.agent

    async def scenario() -> None:
        paths = {"stdin": agent.fifo("in"), "stdout": agent.fifo("out")}
        reader = agent.reader(paths["stdout"])
        writer = os.open(paths["stdin"], os.O_RDWR)
        script = ["sh", "-c", "tty; read x; stty size; read x; echo bye; exit 4"]
        exec_id = await relayed.run(script, by_exec, terminal=True, **paths)
        assert b"/dev/" in await agent.read(reader, b"\n")
        await agent.call("task.resize_pty", id="c", exec_id=exec_id, width=132, height=43)
        os.write(writer, b"\n")
        assert b"43 132" in await agent.read(reader, b"43 132")
        os.write(writer, b"\n")
        os.close(writer)
        assert (await relayed.end(exec_id))["exit_status"] == 4
        assert b"bye" in await agent.read(reader)

    agent.run(scenario())


def test_a_terminal_passes_a_lot(relayed: Relayed) -> None:
    agent = relayed.agent
    digest = big_file(agent)

    async def scenario() -> None:
        stdout = agent.fifo("out")
        reader = agent.reader(stdout)
        exec_id = await relayed.run(["sh", "-c", "stty raw; cat /big"], False, stdout=stdout, terminal=True)
        assert hashlib.sha256(await agent.read(reader)).hexdigest() == digest
        assert (await relayed.end(exec_id))["exit_status"] == 0

    agent.run(scenario())


def test_a_terminal_whose_output_nobody_wants_runs_on(relayed: Relayed) -> None:
    agent = relayed.agent
    big_file(agent)

    async def scenario() -> None:
        exec_id = await relayed.run(["sh", "-c", "cat /big; exit 3"], False, terminal=True)
        assert (await relayed.end(exec_id))["exit_status"] == 3

    agent.run(scenario())


def test_a_process_left_behind_delays_the_exit_of_an_exec_only_for_a_while(relayed: Relayed) -> None:
    agent = relayed.agent

    async def scenario() -> None:
        stdout = agent.fifo("out")
        reader = agent.reader(stdout)
        exec_id = await relayed.run(["sh", "-c", "echo mine; sleep 100 & exit 5"], True, stdout=stdout)
        ended = await relayed.end(exec_id)
        assert (ended["exit_status"], ended["stdout_bytes"]) == (5, 5)
        assert await agent.read(reader) == b"mine\n"

    agent.run(scenario())


def test_a_new_connection_in_the_middle_loses_and_doubles_nothing(relayed: Relayed) -> None:
    agent = relayed.agent
    digest = big_file(agent)

    async def scenario() -> None:
        stdout = agent.fifo("out")
        reader = agent.reader(stdout)
        exec_id = await relayed.run(["cat", "/big"], False, stdout=stdout)
        parts, size, next_time = [], 0, 0
        while size < MEGABYTES << 20:
            if size >= next_time:
                await relayed.connect()
                next_time += 300_000
            await agent.loop.wait_readable(reader)
            parts.append(os.read(reader, 65536))
            size += len(parts[-1])
        assert await agent.read(reader) == b""
        assert hashlib.sha256(b"".join(parts)).hexdigest() == digest
        assert (await relayed.end(exec_id))["exit_status"] == 0

    agent.run(scenario())


def test_input_goes_on_over_a_new_connection(relayed: Relayed) -> None:
    agent = relayed.agent
    data = os.urandom(2 << 20)

    async def scenario() -> None:
        paths = {"stdin": agent.fifo("in"), "stdout": agent.fifo("out")}
        reader = agent.loop.spawn(agent.read(agent.reader(paths["stdout"])))
        writer = os.open(paths["stdin"], os.O_RDWR | os.O_NONBLOCK)
        exec_id = await relayed.run(["md5sum"], False, **paths)
        for at in range(0, len(data), 200_000):
            await relayed.connect()
            await write(agent, writer, data[at : at + 200_000])
        relayed.stdio.close_stdin("c", exec_id)
        await relayed.connect()
        os.close(writer)
        assert (await reader).split()[0].decode() == hashlib.md5(data, usedforsecurity=False).hexdigest()
        assert (await relayed.end(exec_id))["exit_status"] == 0

    agent.run(scenario())


def test_the_exit_is_told_only_after_the_end_has_been_acknowledged(agent: Agent) -> None:
    """The test is the receiver here, and takes its time."""

    async def scenario() -> None:
        frames: list[Data | Window] = []
        client = await agent.connect()
        client.on_stream = frames.append
        events: list[str] = []
        client.on_event = lambda seq, topic, body: events.append(topic)
        await agent.run_container("c", ["echo", "words"], stdout="stream:", stderr="stream:")
        waiting = agent.loop.spawn(client.call("task.wait", {"id": "c", "exec_id": ""}))
        stdout, stderr = "c//stdout", "c//stderr"
        assert not [frame for frame in frames if isinstance(frame, Data) and frame.data]  # no window, no byte
        for stream in (stdout, stderr):
            client.send(Window(stream, 0, WINDOW_BYTES))
        await until(agent, lambda: sum(isinstance(frame, Data) and frame.end for frame in frames) == 2)
        assert [bytes(f.data) for f in frames if isinstance(f, Data) and f.data] == [b"words\n"]
        client.send(Window(stdout, 6, WINDOW_BYTES))  # the bytes, not the end
        client.send(Window(stderr, 1, 1))
        await client.call("info", {})
        assert not waiting.done
        assert events == []
        client.send(Window(stdout, 7, 7))
        assert (await waiting)["stdout_bytes"] == 6
        await until(agent, lambda: events == ["task.exit"])

    agent.run(scenario())


async def until(agent: Agent, condition: Any) -> None:
    """Wait for what frames bring, with a deadline."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        await agent.loop.sleep(0.002)


def test_an_end_that_was_not_acknowledged_is_sent_to_the_next_worker(agent: Agent) -> None:
    async def scenario() -> None:
        await agent.connect()
        await agent.run_container("c", ["echo", "words"], stdout="stream:")
        for taken in (0, 3, 6):  # three workers die having taken so much
            client = await agent.connect()
            frames: list[Data | Window] = []
            client.on_stream = frames.append
            client.send(Window("c//stdout", taken, WINDOW_BYTES))
            await until(agent, lambda: any(isinstance(frame, Data) and frame.end for frame in frames))  # noqa: B023
            data = [frame for frame in frames if isinstance(frame, Data) and (frame.data or frame.end)]
            assert (data[0].offset, b"".join(bytes(f.data) for f in data)) == (taken, b"words\n"[taken:])
        client = await agent.connect()
        client.send(Window("c//stdout", 7, 7))
        assert (await client.call("task.wait", {"id": "c", "exec_id": ""}))["stdout_bytes"] == 6

    agent.run(scenario())


def test_a_worker_that_says_nonsense_harms_its_stream_only(agent: Agent) -> None:
    async def scenario() -> None:
        client = await agent.connect()
        await agent.run_container("c", ["cat"], stdin="stream:", stdout="stream:")
        client.send(Window("c//stdout", 1000, 5))
        client.send(Window("nobody//stdout", 1, 1))
        client.send(Data("c//stdin", 5000, b"from nowhere"))
        client.send(Data("c//stdin", 0, b"hello", True))
        frames: list[Data | Window] = []
        client.on_stream = frames.append
        await until(agent, lambda: any(isinstance(frame, Data) and frame.end for frame in frames))
        assert b"".join(bytes(frame.data) for frame in frames if isinstance(frame, Data)) == b"hello"

    agent.run(scenario())


def test_a_connection_that_breaks_while_the_worker_stands_still(agent: Agent) -> None:
    """The agent sends no more than the channel takes: a worker that does not read is no danger to the others."""
    big_file(agent)

    async def scenario() -> None:
        await agent.connect()
        await agent.run_container("c", ["cat", "/big"], stdout="stream:")
        deaf = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        deaf.connect(agent.socket_path)
        client = AgentClient(agent.loop, deaf)
        await client.hello(time.monotonic() + SECONDS)
        client.send(Window("c//stdout", 0, 1 << 40))
        await client.call("info", {})
        client.close()
        relay = Stdio(agent.loop, "pod", None)
        stdout = agent.fifo("out")
        reader = agent.reader(stdout)
        relay.open("c", "", NOTHING | {"stdout": stdout})
        relay.connected(await agent.connect())
        assert len(await agent.read(reader)) == MEGABYTES << 20
        assert (await agent.call("task.wait", id="c", exec_id=""))["exit_status"] == 0
        relay.close_all()

    agent.run(scenario())


def test_paths_and_streams_are_not_mixed(agent: Agent) -> None:
    async def scenario() -> None:
        with pytest.raises(InvalidArgument, match=r"stderr.*no stream") as raised:
            await agent.create("c", ["true"], stdout="stream:", stderr=agent.fifo("err"))
        assert raised.value.field == "stderr"

    agent.run(scenario())


def test_what_is_no_fifo_is_refused_by_name_and_leaves_nothing_open(relayed: Relayed) -> None:
    path = relayed.agent.fifo("out")
    with pytest.raises(InvalidArgument, match=r"stderr.*not a FIFO"):
        relayed.stdio.open("c", "", NOTHING | {"stdout": path, "stderr": "/etc/hostname"})
    with pytest.raises(InvalidArgument, match=r"stdin.*scheme binary"):
        relayed.stdio.open("c", "", NOTHING | {"stdin": "binary:///logger"})
