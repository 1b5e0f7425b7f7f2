"""Cgroups of this host: made, filled, frozen, limited, watched and removed for real."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator

import pytest

from kuasar.core import cgroup
from kuasar.core.aio import Loop
from kuasar.core.errors import InvalidArgument, NotFound
from kuasar.core.spawn import Children
from tests.integration.agent.harness import CGROUPS

SLEEP = ["/usr/bin/busybox", "sleep", "100"]


class Rig:
    """A loop that reaps, and a cgroup of its own."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.children = Children(self.loop)
        self.path = f"/{CGROUPS}/{uuid.uuid4().hex[:8]}"

    def sleeper(self, path: str) -> int:
        pid, _ = self.children.spawn(SLEEP)
        cgroup.enter(path, pid)
        return pid


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    cgroup.create(rig.path)
    yield rig
    rig.loop.run(cgroup.destroy(rig.loop, rig.path))
    rig.children.close()
    rig.loop.close()


def test_make_fill_and_destroy_with_what_is_below(rig: Rig) -> None:
    cgroup.create(f"{rig.path}/a/b")
    cgroup.create(f"{rig.path}/a/b")  # harmless
    pids = sorted([rig.sleeper(rig.path), rig.sleeper(f"{rig.path}/a/b")])
    assert cgroup.procs(rig.path) == pids
    assert cgroup.stats(rig.path)["pids"]["current"] == 2
    rig.loop.run(cgroup.destroy(rig.loop, rig.path))
    assert not cgroup.exists(rig.path)
    assert cgroup.procs(rig.path) == []
    rig.loop.run(cgroup.destroy(rig.loop, rig.path))  # gone already


def test_what_is_frozen_below_dies_too(rig: Rig) -> None:
    cgroup.create(f"{rig.path}/a")
    rig.sleeper(f"{rig.path}/a")
    rig.loop.run(cgroup.freeze(rig.loop, f"{rig.path}/a"))
    rig.loop.run(cgroup.destroy(rig.loop, rig.path))
    assert not cgroup.exists(rig.path)


def test_frozen_processes_stand_still(rig: Rig) -> None:
    pid, _ = rig.children.spawn(["/usr/bin/busybox", "sh", "-c", "while :; do :; done"])
    cgroup.enter(rig.path, pid)
    rig.loop.run(cgroup.freeze(rig.loop, rig.path))

    def ticks() -> int:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[11])

    before, until = ticks(), time.monotonic() + 0.1
    rig.loop.run(rig.loop.sleep(until - time.monotonic()))
    assert ticks() == before
    cgroup.thaw(rig.path)
    rig.loop.run(rig.loop.sleep(0.1))
    assert ticks() > before


def test_nobody_enters_what_does_not_exist(rig: Rig) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        cgroup.enter(f"/{CGROUPS}/nothing", os.getpid())
    with pytest.raises(NotFound, match="gone"):
        cgroup.enter(rig.path, 2**22 - 1)


def test_limits_up_and_down(rig: Rig) -> None:
    for megabytes in (64, 16, 128):
        limit = megabytes << 20
        cgroup.apply(rig.path, {"memory": {"limit": limit, "swap": limit}, "pids": {"limit": megabytes}})
        stats = cgroup.stats(rig.path)
        assert stats["pids"]["limit"] == megabytes
        memory = stats["memory"]
        assert (memory["usage"]["limit"] if stats["version"] == 1 else memory["usage_limit"]) == limit
    with pytest.raises(InvalidArgument, match=r"resources\.cpu\.cpus"):
        cgroup.apply(rig.path, {"cpu": {"cpus": "4711"}})


def test_an_oom_kill_is_noticed_once(rig: Rig) -> None:
    told: list[int] = []
    cgroup.apply(rig.path, {"memory": {"limit": 16 << 20, "swap": 16 << 20}})
    watch = cgroup.OomWatch(rig.loop, rig.path, lambda: told.append(1))
    script = "read x; exec dd if=/dev/zero of=/dev/null bs=64M count=1"
    reader, writer = os.pipe()
    pid, ended = rig.children.spawn(["/usr/bin/busybox", "sh", "-c", script], stdin=reader)
    cgroup.enter(rig.path, pid)
    os.write(writer, b"\n")
    os.close(writer)
    os.close(reader)

    async def scenario() -> None:
        assert (await rig.loop.wait_for(ended, time.monotonic() + 10)).signal == 9
        watch.check()
        watch.check()
        await rig.loop.sleep(0.05)  # a notification that comes late tells nothing new

    rig.loop.run(scenario())
    watch.close()
    watch.close()
    assert told == [1]
