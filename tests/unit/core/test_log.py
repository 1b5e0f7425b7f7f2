"""Lines of the log, in both forms."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator

import pytest

from kuasar.core import aio, log

Written = Callable[[], list[str]]


@pytest.fixture
def written() -> Iterator[tuple[int, Written]]:
    """A descriptor to log to, and what has been written to it."""
    source, sink = os.pipe()
    os.set_blocking(source, False)

    def lines() -> list[str]:
        try:
            return os.read(source, 65536).decode().splitlines()
        except BlockingIOError:
            return []

    yield sink, lines
    log.configure()
    os.close(source)
    os.close(sink)


def test_logfmt(written: tuple[int, Written]) -> None:
    sink, lines = written
    log.configure("info", sink, sandbox="a1")
    log.info("it is", container="c", words='two "w"\n', count=3)
    log.debug("not this")
    (line,) = lines()
    stamp, rest = line.split(" ", 1)
    assert len(stamp) == len("2026-01-01T00:00:00.000Z")
    assert rest == 'info "it is" sandbox=a1 container=c words="two \\"w\\"\\n" count=3'


def test_json(written: tuple[int, Written]) -> None:
    sink, lines = written
    log.configure("debug", sink, "json", sandbox="a1")
    log.warning(
        "it is", container="c", words='two "w"\n', count=3, share=0.5, done=True, why=ValueError("x"), more=None
    )
    found = json.loads(lines()[0])
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "warning",
        "message": "it is",
        "sandbox": "a1",
        "container": "c",
        "words": 'two "w"\n',
        "count": 3,
        "share": 0.5,
        "done": True,
        "why": "x",
        "more": "None",
    }


def test_the_level_is_changed_while_it_runs(written: tuple[int, Written]) -> None:
    sink, lines = written
    log.configure("error", sink)
    log.info("before")
    log.set_level("debug")
    assert log.level() == "debug"
    assert log.enabled("debug")
    log.debug("after")
    assert [line.split()[2] for line in lines()] == ["after"]


def test_what_a_line_is_about_is_added_unless_it_says_so_itself(written: tuple[int, Written]) -> None:
    sink, lines = written
    known = {"request": "r1", "sandbox": "other", "container": "c1"}
    log.configure("info", sink, sandbox="a1")
    log.set_about(lambda: known)
    try:
        log.info("one")
        log.info("two", container="c2")
        known.clear()
        log.info("three")
    finally:
        log.set_about(lambda: None)
    assert [line.split(" ", 2)[2] for line in lines()] == [
        "one sandbox=a1 request=r1 container=c1",
        "two sandbox=a1 container=c2 request=r1",
        "three sandbox=a1",
    ]


def test_tasks_are_about_what_their_makers_are_about() -> None:
    loop = aio.Loop()
    seen = []

    async def inner(name: str) -> None:
        await loop.sleep(0)
        seen.append((name, dict(aio.get_about() or {})))

    async def request(name: str) -> None:
        about = {"request": name}
        aio.set_about(about)
        await loop.spawn(inner(f"{name} awaited"))
        loop.spawn(inner(f"{name} left behind"))
        about.clear()

    async def both() -> None:
        tasks = [loop.spawn(request("a")), loop.spawn(request("b"))]
        for task in tasks:
            await task
        await loop.sleep(0.01)
        assert aio.get_about() is None

    loop.run(both())
    loop.close()
    assert sorted(seen) == [
        ("a awaited", {"request": "a"}),
        ("a left behind", {}),
        ("b awaited", {"request": "b"}),
        ("b left behind", {}),
    ]
