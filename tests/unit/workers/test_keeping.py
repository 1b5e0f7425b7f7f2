"""What the worker owes to a keeper that comes and goes. The real keeper is in tests/integration/workers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import pytest

from kuasar.core.aio import Loop
from kuasar.core.errors import ResourceExhausted, Unavailable
from kuasar.workers.keeping import Keeping


class Store:
    """A keeper in this process: a pipe stands for its life."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[list[int], bytes]] = {}
        self.away = False
        self.refused = ""
        self._pipe: tuple[int, int] | None = None

    def _call(self) -> None:
        if self.away:
            self.lost()
            raise Unavailable("away")
        if self._pipe is None:
            self._pipe = os.pipe()

    def put(self, name: str, fds: Sequence[int], meta: bytes = b"") -> None:
        self._call()
        if name == self.refused:
            raise ResourceExhausted("full")
        self.kept[name] = (list(fds), meta)

    def get(self, name: str) -> tuple[list[int], bytes] | None:
        self._call()
        return self.kept.get(name)

    def drop(self, name: str) -> None:
        self._call()
        self.kept.pop(name, None)

    def fileno(self) -> int | None:
        return self._pipe[0] if self._pipe is not None else None

    def lost(self) -> None:
        pipe, self._pipe = self._pipe, None
        for fd in pipe or ():
            with suppress(OSError):
                os.close(fd)

    def die(self) -> None:
        """As a keeper does: everything is forgotten, the connection ends."""
        self.kept.clear()
        assert self._pipe is not None
        os.close(self._pipe[1])


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store()
    yield store
    store.lost()


@pytest.fixture
def keeping(loop: Loop, store: Store) -> Iterator[Keeping]:
    keeping = Keeping(loop, store)
    yield keeping
    keeping.close()


def until(loop: Loop, condition: Callable[[], bool]) -> None:
    async def wait() -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline
            await loop.sleep(0.002)

    loop.run(wait())


def test_put_get_drop(keeping: Keeping, store: Store) -> None:
    keeping.put("a", [1, 2], b"m")
    assert keeping.get("a") == ([1, 2], b"m")
    keeping.put("a", [3])
    assert store.kept == {"a": ([3], b"")}
    keeping.drop("a")
    keeping.drop("b")
    assert store.kept == {}


def test_a_new_keeper_is_told_everything(loop: Loop, keeping: Keeping, store: Store) -> None:
    keeping.put("a", [1])
    keeping.put("b", [2])
    keeping.drop("b")
    store.die()
    until(loop, lambda: store.kept == {"a": ([1], b"")})


def test_what_happens_while_the_keeper_is_away_is_told_later(loop: Loop, keeping: Keeping, store: Store) -> None:
    keeping.put("a", [1])
    keeping.put("b", [2])
    store.away = True
    keeping.drop("a")
    keeping.put("c", [3])
    assert keeping.get("b") is None
    assert "a" in store.kept
    store.away = False
    until(loop, lambda: store.kept == {"b": ([2], b""), "c": ([3], b"")})


def test_a_refusal_does_not_hold_up_the_others(loop: Loop, keeping: Keeping, store: Store) -> None:
    store.refused = "a"
    keeping.put("a", [1])
    keeping.put("b", [2])
    assert store.kept == {"b": ([2], b"")}


def test_without_a_keeper_nothing_is_kept(loop: Loop) -> None:
    keeping = Keeping(loop, None)
    keeping.put("a", [1])
    keeping.drop("a")
    assert keeping.get("a") is None
    keeping.close()
