"""The cache of compiled modules: hits, damage, concurrent creators, its bound."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from kuasar.agent.drivers.wasm.modules import ModuleCache
from kuasar.core.errors import BackendFailed

ONE, TWO, THREE = (hashlib.sha256(name).hexdigest() for name in (b"1", b"2", b"3"))


class Compiler:
    """Stands for the engine: writes ``content`` and counts."""

    def __init__(self, content: bytes = b"code") -> None:
        self.content = content
        self.runs = 0

    def __call__(self, fd: int) -> None:
        self.runs += 1
        os.write(fd, self.content)


def take(cache: ModuleCache, digest: str, compile_to: Callable[[int], None]) -> bytes:
    fd = cache.get(digest, compile_to)
    try:
        return os.pread(fd, 1 << 20, 0)
    finally:
        os.close(fd)


def entry(root: Path, digest: str, suffix: str = "cwasm") -> Path:
    return root / "key" / f"{digest}.{suffix}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_compiled_once(root: Path) -> None:
    compiler = Compiler()
    assert take(ModuleCache(str(root), "key"), ONE, compiler) == b"code"
    assert take(ModuleCache(str(root), "key"), ONE, compiler) == b"code"
    assert compiler.runs == 1


def test_another_engine_has_other_entries(root: Path) -> None:
    compiler = Compiler()
    take(ModuleCache(str(root), "key"), ONE, compiler)
    take(ModuleCache(str(root), "other"), ONE, compiler)
    assert compiler.runs == 2


def test_only_root_may_look(root: Path) -> None:
    take(ModuleCache(str(root), "key"), ONE, Compiler())
    for directory in (root, root / "key", root / "digests", root / "locks"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for path in (root / "key").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("suffix", ["cwasm", "sum"])
@pytest.mark.parametrize("damage", [b"", b"C", b"codx", b"code and more"])
def test_a_damaged_entry_is_made_anew(root: Path, suffix: str, damage: bytes) -> None:
    compiler = Compiler()
    cache = ModuleCache(str(root), "key")
    take(cache, ONE, compiler)
    entry(root, ONE, suffix).write_bytes(damage)
    assert take(cache, ONE, compiler) == b"code"
    assert compiler.runs == 2
    assert take(cache, ONE, compiler) == b"code"
    assert compiler.runs == 2


@pytest.mark.parametrize("suffix", ["cwasm", "sum"])
def test_half_an_entry_is_made_anew(root: Path, suffix: str) -> None:
    """What a creator that died between its two renames leaves."""
    compiler = Compiler()
    cache = ModuleCache(str(root), "key")
    take(cache, ONE, compiler)
    entry(root, ONE, suffix).unlink()
    assert take(cache, ONE, compiler) == b"code"
    assert compiler.runs == 2


def test_a_failure_passes_through_and_leaves_nothing(root: Path) -> None:
    def fail(_: int) -> None:
        raise BackendFailed("no module")

    cache = ModuleCache(str(root), "key")
    with pytest.raises(BackendFailed, match="no module"):
        cache.get(ONE, fail)
    assert not list((root / "key").iterdir())
    assert take(cache, ONE, Compiler()) == b"code"


def test_a_discarded_entry_is_made_anew(root: Path) -> None:
    compiler = Compiler()
    cache = ModuleCache(str(root), "key")
    take(cache, ONE, compiler)
    cache.discard(ONE)
    cache.discard(ONE)
    take(cache, ONE, compiler)
    assert compiler.runs == 2


def test_the_least_recently_used_go_first(root: Path) -> None:
    cache = ModuleCache(str(root), "key", max_bytes=250)
    take(cache, ONE, Compiler(b"1" * 100))
    take(cache, TWO, Compiler(b"2" * 100))
    os.utime(entry(root, ONE, "sum"), (1, 1))
    os.utime(entry(root, TWO, "sum"), (2, 2))
    take(cache, ONE, Compiler())  # used again: now the newest
    take(cache, THREE, Compiler(b"3" * 100))
    assert entry(root, ONE).exists()
    assert not entry(root, TWO).exists()
    assert not entry(root, TWO, "sum").exists()
    assert entry(root, THREE).exists()


def test_a_module_larger_than_the_bound_is_still_given(root: Path) -> None:
    cache = ModuleCache(str(root), "key", max_bytes=10)
    assert take(cache, ONE, Compiler(b"1" * 100)) == b"1" * 100
    assert take(cache, TWO, Compiler(b"2" * 100)) == b"2" * 100
    assert not entry(root, ONE).exists()


def test_leftovers_of_the_dead_are_swept_up(root: Path) -> None:
    cache = ModuleCache(str(root), "key")
    old, young = entry(root, TWO, "cwasm.77.tmp"), entry(root, THREE, "cwasm.78.tmp")
    old.write_bytes(b"")
    young.write_bytes(b"")
    os.utime(old, (1, 1))
    record = root / "digests" / "old"
    record.write_bytes(b"")
    os.utime(record, (1, 1))
    take(cache, ONE, Compiler())
    assert not old.exists()
    assert not record.exists()
    assert young.exists()  # somebody may be writing it


def test_two_creators_compile_once(root: Path) -> None:
    """The second waits for the first: it compiles only if the first one has not."""
    cache = ModuleCache(str(root), "key")
    started_r, started_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        good = False
        try:
            second = Compiler(b"second")
            os.read(started_r, 1)
            good = take(ModuleCache(str(root), "key"), ONE, second) == b"first" and not second.runs
        finally:
            os._exit(0 if good else 1)

    def first(fd: int) -> None:
        os.write(started_w, b"x")  # from here on the other one wants the same module
        os.write(fd, b"first")

    assert take(cache, ONE, first) == b"first"
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(started_r)
    os.close(started_w)
