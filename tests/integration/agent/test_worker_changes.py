"""Two workers after each other on one agent: preemption, requests sent again, events kept, and peers that misbehave."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from kuasar.core.errors import InvalidArgument, NotFound, Unavailable
from tests.integration.agent.harness import Agent


def test_a_new_worker_preempts_the_old_one_and_gets_what_was_under_way(agent: Agent) -> None:
    async def scenario() -> None:
        first = await agent.connect()
        body = {"id": "c", "bundle": "/b", "rootfs": agent.rootfs(), "terminal": False}
        body |= {"stdin": "", "stdout": "", "stderr": "", "spec": agent.spec("c", ["sleep", "100"])}
        lost = agent.loop.spawn(first.call("task.create", body, key="k1"))
        await agent.loop.sleep(0)
        second = await agent.connect()
        with pytest.raises(Unavailable):
            await lost
        created = await second.call("task.create", body, key="k1")  # joins the first one, or gets its answer
        assert created == await second.call("task.create", body, key="k1")
        assert (await agent.call("info"))["containers"] == ["c"]
        with pytest.raises(InvalidArgument, match="another request"):
            await second.call("task.start", {"id": "c"}, key="k1")
        started = await second.call("task.start", {"id": "c"}, key="k2")
        assert await second.call("task.start", {"id": "c"}, key="k2") == started
        second.ack_keys(["k2"])
        with pytest.raises(Exception, match="running"):
            await second.call("task.start", {"id": "c"}, key="k2")

    agent.run(scenario())


def test_a_failure_is_remembered_like_an_answer(agent: Agent) -> None:
    async def scenario() -> None:
        for _ in range(2):
            with pytest.raises(NotFound):
                await agent.call("task.start", id="c", key="k")
            if not (await agent.call("info"))["containers"]:
                await agent.create("c", ["true"])
        with pytest.raises(NotFound):
            await agent.call("task.start", id="c", key="k")

    agent.run(scenario())


def test_events_are_told_again_until_acknowledged(agent: Agent) -> None:
    async def scenario() -> None:
        for name in ("a", "b"):
            await agent.run_container(name, ["true"])
            await agent.call("task.wait", id=name)
        seen: list[tuple[int, str]] = []
        ids: set[str] = set()

        def on_event(seq: int, topic: str, body: dict[str, Any]) -> None:
            seen.append((seq, body["container_id"]))
            ids.add(body["id"])

        for expected in ([(1, "a"), (2, "b")], [(1, "a"), (2, "b")], [(2, "b")], []):
            seen.clear()
            client = await agent.connect()
            client.on_event = on_event
            await agent.call("info")
            assert seen == expected
            if len(expected) == 2 and len(ids) == 2:
                ids.add("acknowledge from the second time on")
            elif expected:
                client.ack_event(expected[0][0])
                await agent.call("info")

    agent.run(scenario())


def test_a_peer_that_speaks_nonsense_loses_its_connection_only(agent: Agent) -> None:
    async def scenario() -> None:
        await agent.run_container("c", ["sleep", "100"])
        for nonsense in (b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\xc1", b"GET / HTTP/1.1\r\n\r\n"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.connect(agent.socket_path)
                sock.sendall(nonsense)
                sock.settimeout(5)
                while sock.recv(65536):
                    pass
        await agent.connect()
        assert (await agent.call("task.state", id="c"))["status"] == "running"

    agent.run(scenario())


@pytest.mark.parametrize(
    ("op", "body", "error", "words"),
    [
        ("task.nonsense", {}, NotFound, "no operation"),
        ("task.state", {}, InvalidArgument, "id: a string is needed"),
        ("task.state", {"id": "../../etc"}, InvalidArgument, "not an identifier"),
        ("task.state", {"id": "x" * 1000}, InvalidArgument, "1000 characters"),
        ("task.create", {"id": "c", "rootfs": "x"}, InvalidArgument, "rootfs: list"),
        ("task.create", {"id": "c", "rootfs": [], "bundle": "/b", "spec": {}}, InvalidArgument, r"spec\.root\.path"),
        ("task.create", {"id": "c", "spec": []}, InvalidArgument, "spec: dict"),
        ("task.kill", {"id": "c", "signal": "KILL"}, NotFound, "c does not exist"),
        ("setup", {"hostname": 5}, InvalidArgument, "hostname: str"),
        ("setup", {"hostname": "x" * 65}, InvalidArgument, "hostname: 65"),
        ("shutdown", {"grace": -1.0}, InvalidArgument, "grace"),
    ],
)
def test_a_wrong_request_names_what_is_wrong(
    agent: Agent, op: str, body: dict[str, Any], error: type[Exception], words: str
) -> None:
    async def scenario() -> None:
        client = await agent.connect()
        with pytest.raises(error, match=words):
            await client.call(op, body)
        await agent.call("info")

    agent.run(scenario())
