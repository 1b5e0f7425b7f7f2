"""The gateway's directory: rebuilt from greetings, patient with those who have not greeted yet."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kuasar.bus.messages import Hello
from kuasar.core.errors import InvalidArgument, NotFound
from kuasar.gateway.directory import Directory, sandbox_of_bundle


def hello(sandbox: str, *containers: str, namespace: str = "k8s.io") -> Hello:
    return Hello(sandbox, namespace, "runc", "kuasar-runc", "i", 1, 1, "ready", list(containers))


def record(path: Path, sandbox: str) -> None:
    (path / sandbox).mkdir()
    (path / sandbox / "sandbox.msgpack").write_bytes(b"")


def test_greetings_replace_what_was_known(tmp_path: Path) -> None:
    async def scenario() -> None:
        directory = Directory(str(tmp_path))
        directory.greeted(hello("pod1", "a", "b"))
        assert await directory.require_container("k8s.io", "a") == "pod1"
        directory.greeted(hello("pod1", "b"))
        assert await directory.require_container("k8s.io", "b") == "pod1"
        with pytest.raises(NotFound, match=r"container a does not exist in namespace k8s\.io"):
            await directory.require_container("k8s.io", "a")

    asyncio.run(scenario())


def test_names_are_unique_per_namespace_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        directory = Directory(str(tmp_path))
        directory.greeted(hello("pod1", "a"))
        directory.greeted(hello("pod2", "a", namespace="other"))
        assert await directory.require_container("other", "a") == "pod2"
        assert await directory.require_sandbox("other", "pod2") == "pod2"
        with pytest.raises(NotFound, match=r"sandbox pod2 does not exist in namespace k8s\.io"):
            await directory.require_sandbox("k8s.io", "pod2")

    asyncio.run(scenario())


def test_nothing_is_denied_before_everyone_recorded_has_greeted(tmp_path: Path) -> None:
    record(tmp_path, "pod1")

    async def scenario() -> None:
        directory = Directory(str(tmp_path))
        question = asyncio.create_task(directory.require_container("k8s.io", "a"))
        await asyncio.sleep(0)
        assert not question.done()
        directory.greeted(hello("pod1", "a"))
        assert await question == "pod1"

    asyncio.run(scenario())


def test_a_greeting_without_sandbox_is_no_sandbox(tmp_path: Path) -> None:
    directory = Directory(str(tmp_path))
    directory.greeted(hello("pod1", namespace=""))
    assert not directory.knows("pod1")


def test_bundles(tmp_path: Path) -> None:
    (tmp_path / "sandbox").write_text("pod1\n")
    assert sandbox_of_bundle(str(tmp_path)) == "pod1"
    (tmp_path / "sandbox").write_text("../../etc")
    with pytest.raises(InvalidArgument, match="bundle/sandbox"):
        sandbox_of_bundle(str(tmp_path))
    with pytest.raises(InvalidArgument, match="cannot be read"):
        sandbox_of_bundle(str(tmp_path / "none"))
    with pytest.raises(InvalidArgument, match="absolute"):
        sandbox_of_bundle("here")
