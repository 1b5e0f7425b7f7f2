"""Sandboxes whose call was broken by the gateway's death: removed, unless somebody asks for them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from kuasar.gateway.claims import Claims


def lives(directory: Path, *calls: tuple[str, str]) -> list[tuple[str, str]]:
    """One gateway's life with some calls, up to the end of the grace; gives what it abandoned."""
    abandoned: list[tuple[str, str]] = []

    async def life() -> None:
        over = asyncio.get_running_loop().create_future()
        claims = Claims(str(directory), lambda sandbox, namespace: abandoned.append((sandbox, namespace)), grace=0)
        claims.start()
        for call, sandbox in calls:
            if call == "begun":
                claims.begun(sandbox, "k8s.io")
            else:
                claims.settled(sandbox)
        asyncio.get_running_loop().call_later(0.001, over.set_result, None)
        await over
        claims.close()

    asyncio.run(life())
    return abandoned


def test_what_nobody_asks_for_again_is_abandoned(tmp_path: Path) -> None:
    assert lives(tmp_path / "u", ("begun", "a"), ("begun", "b"), ("settled", "b")) == []
    assert os.listdir(tmp_path / "u") == ["a"]
    assert lives(tmp_path / "u") == [("a", "k8s.io")]
    assert lives(tmp_path / "u", ("settled", "a")) == []  # until it is gone
    assert lives(tmp_path / "u") == []


def test_who_repeats_the_call_keeps_the_sandbox(tmp_path: Path) -> None:
    lives(tmp_path / "u", ("begun", "a"))
    assert lives(tmp_path / "u", ("begun", "a")) == []
    assert lives(tmp_path / "u", ("begun", "a"), ("settled", "a")) == []
    assert os.listdir(tmp_path / "u") == []


def test_settling_what_is_unknown_is_harmless(tmp_path: Path) -> None:
    assert lives(tmp_path / "u", ("settled", "x")) == []
