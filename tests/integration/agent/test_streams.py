"""Standard streams: byte-exact, with back-pressure, ended when they should be, and terminals."""

from __future__ import annotations

import hashlib
import os
import time

import pytest

from kuasar.core.errors import InvalidArgument
from tests.integration.agent.harness import Agent, make_image

MEGABYTES = 10


def big_file(agent: Agent) -> str:
    """A file of 10 MB in the image, and its digest."""
    image = agent.base / "image"
    make_image(image)
    data = os.urandom(MEGABYTES << 20)
    (image / "big").write_bytes(data)
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("by_exec", [False, True])
def test_output_of_10_megabytes_is_byte_exact(agent: Agent, by_exec: bool) -> None:
    digest = big_file(agent)

    async def scenario() -> None:
        stdout = agent.fifo("out")
        reader = agent.reader(stdout)
        await agent.run_container(
            "c", ["sleep", "100"] if by_exec else ["cat", "/big"], stdout="" if by_exec else stdout
        )
        if by_exec:
            await agent.start_exec("c", "x", ["cat", "/big"], stdout=stdout)
        data = await agent.read(reader)
        assert len(data) == MEGABYTES << 20
        assert hashlib.sha256(data).hexdigest() == digest
        assert (await agent.call("task.wait", id="c", exec_id="x" if by_exec else ""))["exit_status"] == 0

    agent.run(scenario())


@pytest.mark.parametrize("by_exec", [False, True])
def test_a_reader_that_comes_late_blocks_the_process_only(agent: Agent, by_exec: bool) -> None:
    digest = big_file(agent)

    async def scenario() -> None:
        stdout = agent.fifo("out")
        await agent.run_container(
            "c", ["sleep", "100"] if by_exec else ["cat", "/big"], stdout="" if by_exec else stdout
        )
        if by_exec:
            await agent.start_exec("c", "x", ["cat", "/big"], stdout=stdout)
        exec_id = "x" if by_exec else ""
        for _ in range(3):  # the agent answers while the stream stands still
            assert (await agent.call("task.state", id="c", exec_id=exec_id))["status"] == "running"
        data = await agent.read(agent.reader(stdout))
        assert hashlib.sha256(data).hexdigest() == digest

    agent.run(scenario())


def test_output_stays_until_delete_even_when_nobody_has_read_it_yet(agent: Agent) -> None:
    async def scenario() -> None:
        stdout = agent.fifo("out")
        await agent.run_container("c", ["echo", "last words"], stdout=stdout)
        await agent.call("task.wait", id="c")
        assert await agent.read(agent.reader(stdout), b"\n") == b"last words\n"

    agent.run(scenario())


def test_a_reader_that_goes_away_does_not_break_the_pipe(agent: Agent) -> None:
    async def scenario() -> None:
        stdout, stdin = agent.fifo("out"), agent.fifo("in")
        first = os.open(stdout, os.O_RDONLY | os.O_NONBLOCK)
        await agent.run_container("c", ["sh", "-c", "echo one; read x; echo $x"], stdout=stdout, stdin=stdin)
        assert await agent.read(first, b"\n") == b"one\n"
        agent.loop.remove_reader(first)
        os.close(first)
        writer = os.open(stdin, os.O_WRONLY)
        os.write(writer, b"two\n")
        os.close(writer)
        assert await agent.read(agent.reader(stdout)) == b"two\n"
        assert (await agent.finish("c"))["exit_status"] == 0

    agent.run(scenario())


@pytest.mark.parametrize("by_exec", [False, True])
def test_stdin_ends_with_close_io_and_not_when_a_writer_goes_away(agent: Agent, by_exec: bool) -> None:
    async def scenario() -> None:
        stdin, stdout = agent.fifo("in"), agent.fifo("out")
        reader = agent.reader(stdout)
        streams = {"stdin": stdin, "stdout": stdout}
        exec_id = "x" if by_exec else ""
        await agent.run_container("c", ["sleep", "100"] if by_exec else ["cat"], **({} if by_exec else streams))
        if by_exec:
            await agent.start_exec("c", "x", ["cat"], **streams)
        for text in (b"one\n", b"two\n"):
            writer = os.open(stdin, os.O_WRONLY)
            os.write(writer, text)
            os.close(writer)
            assert await agent.read(reader, text) == text
        assert (await agent.call("task.state", id="c", exec_id=exec_id))["status"] == "running"
        await agent.call("task.close_io", id="c", exec_id=exec_id)
        assert (await agent.call("task.wait", id="c", exec_id=exec_id))["exit_status"] == 0
        assert await agent.read(reader) == b""

    agent.run(scenario())


def test_an_exec_is_over_although_what_it_left_behind_keeps_its_output_open(agent: Agent) -> None:
    async def scenario() -> None:
        stdout = agent.fifo("out")
        reader = agent.reader(stdout)
        await agent.run_container("c", ["sleep", "100"])
        begun = time.monotonic()
        await agent.start_exec("c", "x", ["sh", "-c", "sleep 50 & echo done"], stdout=stdout)
        assert (await agent.call("task.wait", id="c", exec_id="x"))["exit_status"] == 0
        assert time.monotonic() - begun < 5
        assert await agent.read(reader) == b"done\n"

    agent.run(scenario())


def test_stdout_and_stderr_are_apart(agent: Agent) -> None:
    async def scenario() -> None:
        stdout, stderr = agent.fifo("out"), agent.fifo("err")
        readers = agent.reader(stdout), agent.reader(stderr)
        await agent.run_container("c", ["sh", "-c", "echo out; echo err >&2"], stdout=stdout, stderr=stderr)
        assert [await agent.read(reader) for reader in readers] == [b"out\n", b"err\n"]

    agent.run(scenario())


@pytest.mark.parametrize("by_exec", [False, True])
def test_a_terminal_with_input_and_resize(agent: Agent, by_exec: bool) -> None:
    async def scenario() -> None:
        stdin, stdout = agent.fifo("in"), agent.fifo("out")
        reader = agent.reader(stdout)
        writer = os.open(stdin, os.O_RDWR)
        script = ["sh", "-c", "tty; read x; stty size; read x; echo bye; exit 4"]
        streams = {"stdin": stdin, "stdout": stdout, "terminal": True}
        exec_id = "x" if by_exec else ""
        await agent.run_container("c", ["sleep", "100"] if by_exec else script, **({} if by_exec else streams))
        if by_exec:
            await agent.start_exec("c", "x", script, **streams)
        assert b"/dev/" in await agent.read(reader, b"\n")
        await agent.call("task.resize_pty", id="c", exec_id=exec_id, width=132, height=43)
        os.write(writer, b"\n")
        assert b"43 132" in await agent.read(reader, b"43 132")
        os.write(writer, b"\n")
        os.close(writer)
        assert (await agent.call("task.wait", id="c", exec_id=exec_id))["exit_status"] == 4
        assert b"bye" in await agent.read(reader)

    agent.run(scenario())


def test_a_terminal_passes_a_lot_both_ways(agent: Agent) -> None:
    digest = big_file(agent)

    async def scenario() -> None:
        stdout = agent.fifo("out")
        reader = agent.reader(stdout)
        await agent.run_container("c", ["sh", "-c", "stty raw; cat /big"], stdout=stdout, terminal=True)
        assert hashlib.sha256(await agent.read(reader)).hexdigest() == digest
        assert (await agent.finish("c"))["exit_status"] == 0

    agent.run(scenario())


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("stdout", "binary:///usr/bin/logger", "scheme binary"),
        ("stdin", "fifo", "absolute"),
        ("stderr", "/nonexistent/fifo", "No such file"),
        ("stdout", "/etc/hostname", "not a FIFO"),
    ],
)
def test_streams_that_are_no_fifos_are_refused_by_name(agent: Agent, field: str, value: str, words: str) -> None:
    async def scenario() -> None:
        with pytest.raises(InvalidArgument, match=f"{field}.*{words}") as raised:
            await agent.create("c", ["true"], **{field: value})
        assert raised.value.field == field
        await agent.run_container("c", ["true"])
        with pytest.raises(InvalidArgument, match="no terminal"):
            await agent.call("task.resize_pty", id="c", width=1, height=1)

    agent.run(scenario())
