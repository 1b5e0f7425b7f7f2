"""Compiled modules on disk, through the driver."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kuasar.agent.drivers.wasm import syscalls
from kuasar.core.errors import DeadlineExceeded
from tests.integration.agent_wasm.conftest import Agent, spec, write
from tests.wasm import large, module

pytestmark = pytest.mark.root
HELLO = hashlib.sha256(module("hello")).hexdigest()
GREETING = (0, b"Hello from a WebAssembly container.\n", b"")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cold(cache: Path) -> Iterator[Agent]:
    """A double with an empty cache."""
    agent = Agent(str(cache))
    yield agent
    agent.close()


def entry(cache: Path, suffix: str) -> Path:
    [path] = cache.glob(f"*/{HELLO}.{suffix}")
    return path


def test_compiled_once_and_found_again(cold: Agent, cache: Path, rootfs: str) -> None:
    assert cold.create(rootfs, spec("/hello.wasm")).run() == GREETING
    inode = entry(cache, "cwasm").stat().st_ino
    assert entry(cache, "cwasm").parent.name.startswith("50.")
    assert cold.create(rootfs, spec("/hello.wasm")).run() == GREETING
    assert entry(cache, "cwasm").stat().st_ino == inode
    os.rename(f"{rootfs}/hello.wasm", f"{rootfs}/other.wasm")  # the content counts, not the name
    assert cold.create(rootfs, spec("/other.wasm")).run() == GREETING
    assert entry(cache, "cwasm").stat().st_ino == inode


def test_a_damaged_entry_is_never_run(cold: Agent, cache: Path, rootfs: str) -> None:
    cold.create(rootfs, spec("/hello.wasm")).run()
    good = entry(cache, "cwasm").read_bytes()
    damaged = bytearray(good)
    damaged[good.index(b"Hello from")] ^= 1
    entry(cache, "cwasm").write_bytes(damaged)
    assert cold.create(rootfs, spec("/hello.wasm")).run() == GREETING
    assert entry(cache, "cwasm").read_bytes() == good


def test_an_entry_that_the_engine_refuses_is_made_anew(cold: Agent, cache: Path, rootfs: str) -> None:
    """Whole, but of another engine, although the key is the same."""
    cold.create(rootfs, spec("/hello.wasm")).run()
    entry(cache, "cwasm").write_bytes(b"not code")
    entry(cache, "sum").write_text(hashlib.sha256(b"not code").hexdigest())
    assert cold.create(rootfs, spec("/hello.wasm")).run() == GREETING
    assert entry(cache, "cwasm").read_bytes() != b"not code"


def test_without_a_usable_cache_modules_run_all_the_same(rootfs: str) -> None:
    agent = Agent("/proc/no/cache")
    assert agent.create(rootfs, spec("/hello.wasm")).run() == GREETING
    agent.close()


def test_a_full_disk_does_not_keep_modules_from_running(
    tmp_path: Path, rootfs: str, capfd: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    syscalls.mount("tmpfs", str(full), "tmpfs", 0, "size=8k")
    try:
        agent = Agent(str(full / "cache"))
        assert agent.create(rootfs, spec("/hello.wasm")).run() == GREETING
        agent.close()
        assert not list(full.glob("cache/*/*.*"))
        assert "cannot be used: No space left on device" in capfd.readouterr().err
    finally:
        syscalls.unmount(str(full), 0)


def test_a_changed_module_is_compiled_anew(cold: Agent, rootfs: str) -> None:
    assert cold.create(rootfs, spec("/hello.wasm")).run() == GREETING
    write(f"{rootfs}/hello.wasm", module("stderr"))
    assert cold.create(rootfs, spec("/hello.wasm")).run() == (0, b"to stdout\n", b"to stderr\n")


def test_the_deadline_ends_the_compiler_too(cold: Agent, rootfs: str) -> None:
    write(f"{rootfs}/large.wasm", large(20_000_000))
    with pytest.raises(DeadlineExceeded):
        cold.create(rootfs, spec("/large.wasm"), timeout=0.4)
    end = time.monotonic() + 1  # compiling would take some seconds more
    while cold.call("state")["children"]:  # orphans go to the double, as they do to the agent
        assert time.monotonic() < end


def test_a_large_module(cold: Agent, rootfs: str) -> None:
    write(f"{rootfs}/large.wasm", large(1_500_000))
    for _ in range(2):
        assert cold.create(rootfs, spec("/large.wasm")).run() == (0, b"", b"")
