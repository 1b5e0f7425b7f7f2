"""kill -9 of workers and gateways, stale generations, events across all of them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from kuasar.bus.router import BusRouter
from kuasar.core import errors
from tests.integration.bus.conftest import Stage
from tests.integration.bus.helpers import run, serving, soon, until
from tests.integration.bus.worker import EXIT_OUTDATED


@pytest.mark.parametrize("die", ["before", "after"])
def test_a_killed_worker_is_answered_for_by_its_successor_and_nothing_is_done_twice(stage: Stage, die: str) -> None:
    async def test() -> None:
        async with serving(stage.address) as router:
            first = stage.worker("s1", 1)
            await router.wait_link("s1", soon())
            slow = [
                asyncio.ensure_future(router.call("s1", "test.change", {"slow": True}, key=f"k{n}", deadline=soon()))
                for n in range(5)
            ]
            wait = asyncio.ensure_future(router.call("s1", "test.hang", {}))
            await router.call("s1", "test.echo", {}, deadline=soon())
            fatal = asyncio.ensure_future(router.call("s1", "test.change", {"die": die}, key="fatal", deadline=soon()))
            await until(lambda: router.counters["deaths"] == 1)
            assert first.wait(5) == -signal.SIGKILL
            late = asyncio.ensure_future(router.call("s1", "test.change", {}, key="late", deadline=soon()))
            stage.worker("s1", 2)
            assert [await call for call in slow] == [{"done_by": 1}] * 5
            assert await fatal == {"done_by": 2 if die == "before" else 1}
            assert await late == {"done_by": 2}
            assert not wait.done()
            assert router.counters["resent"] == 7
            done = [line.split()[0] for line in stage.lines("done")]
            assert sorted(done) == ["fatal", "k0", "k1", "k2", "k3", "k4", "late"]
            wait.cancel()
            await asyncio.gather(wait, return_exceptions=True)

    run(test())


def test_a_death_is_noticed_at_once_and_what_it_means_is_decided_by_whoever_asked(stage: Stage) -> None:
    async def test() -> None:
        died: asyncio.Future[float] = asyncio.get_running_loop().create_future()

        async def on_death(sandbox: str) -> None:
            assert sandbox == "s1"
            died.set_result(time.monotonic())
            router.suspend("s1", "stopped by an operator")

        async with serving(stage.address) as router:
            router.on_death = on_death
            worker = stage.worker("s1")
            link = await router.wait_link("s1", soon())
            read = asyncio.ensure_future(router.call("s1", "test.hang", {}, deadline=soon()))
            wait = asyncio.ensure_future(router.call("s1", "test.echo", {"n": 1}))
            assert await wait == {"n": 1, "key": ""}
            wait = asyncio.ensure_future(router.call("s1", "test.hang", {}))
            await asyncio.sleep(0)
            killed = time.monotonic()
            worker.kill()
            assert await died - killed < 1.0
            with pytest.raises(errors.Unavailable, match="stopped by an operator"):
                await read
            assert link.state == "suspended"
            with pytest.raises(errors.Unavailable, match="stopped by an operator"):
                await router.call("s1", "test.echo", {}, deadline=soon())
            assert not wait.done()
            stage.worker("s1", 2)
            assert await router.wait_link("s1", soon()) is link
            assert link.state == "alive"
            assert await router.call("s1", "test.echo", {"n": 2}, deadline=soon()) == {"n": 2, "key": ""}
            router.forget("s1")
            with pytest.raises(errors.NotFound, match="removed"):
                await wait
            assert router.link("s1") is None

    run(test())


def test_a_worker_not_replaced_in_time_is_unavailable(stage: Stage) -> None:
    async def test() -> None:
        async with serving(stage.address) as router:
            worker = stage.worker("s1")
            await router.wait_link("s1", soon())
            call = asyncio.ensure_future(router.call("s1", "test.hang", {}, key="k", deadline=soon(0.5)))
            await asyncio.sleep(0)
            worker.kill()
            with pytest.raises(errors.Unavailable, match="not there in time"):
                await call

    run(test())


def test_an_outdated_worker_leaves_and_the_newest_serves(stage: Stage) -> None:
    async def test() -> None:
        async with serving(stage.address) as router:
            old = stage.worker("s1", 1)
            await router.wait_link("s1", soon())
            hanging = asyncio.ensure_future(router.call("s1", "test.count", {"seconds": 0.5}, key="k", deadline=soon()))
            await router.call("s1", "test.echo", {}, deadline=soon())
            new = stage.worker("s1", 2)
            assert await asyncio.to_thread(old.wait, 10) == EXIT_OUTDATED
            assert (await router.call("s1", "test.facts", {}, deadline=soon()))["pid"] == new.pid
            assert await hanging == {"key": "k"}
            third = stage.worker("s1", 1)
            assert await asyncio.to_thread(third.wait, 10) == EXIT_OUTDATED
            assert (await router.call("s1", "test.facts", {}, deadline=soon()))["pid"] == new.pid
            link = router.link("s1")
            assert link is not None
            assert link.generation == 2

    run(test())


def test_a_sandbox_made_anew_under_its_old_name_begins_with_generation_1(stage: Stage) -> None:
    async def test() -> None:
        async with serving(stage.address) as router:
            old = stage.worker("s1", 5)
            link = await router.wait_link("s1", soon())
            old.kill()
            await until(lambda: not link.alive)
            new = stage.worker("s1", 1)
            await router.wait_link("s1", soon())
            assert (await router.call("s1", "test.facts", {}, deadline=soon()))["pid"] == new.pid
            assert link.generation == 1

    run(test())


def test_a_killed_gateway_is_replaced_and_workers_greet_the_new_one(stage: Stage) -> None:
    """What was answered is not repeated, what is under way is done once, the wait is given up, the events come."""

    async def test() -> None:
        worker = stage.worker("s1")
        gateway = stage.start("tests.integration.bus.gateway", stage.address, "s1")
        assert gateway.stdout is not None
        epoch = int(await asyncio.to_thread(gateway.stdout.readline))
        gateway.kill()
        gateway.wait(5)
        assert os.path.exists(stage.socket)  # the stale one, which is no obstacle
        events: list[Any] = []
        router = BusRouter(stage.address)
        router.on_event = lambda sandbox, topic, body: events.append((sandbox, topic, body["id"]))
        await router.start()
        try:
            assert router.epoch > epoch
            link = await router.wait_link("s1", soon())
            assert link.hello is not None
            assert link.hello.pid == worker.pid
            while (facts := await router.call("s1", "test.facts", {}, deadline=soon()))["cancelled"] != 1:
                await asyncio.sleep(0.01)
            # Whoever journalled its callers asks again under the old key and gets the one answer.
            reply = await router.call("s1", "test.count", {"seconds": 0.3}, key=f"{epoch}.3", deadline=soon())
            assert reply == {"key": f"{epoch}.3"}
            assert stage.lines("count") == [f"{epoch}.1", f"{epoch}.3"]
            assert facts["malformed"] == 0
            await until(lambda: len(events) == 3)
            assert events == [("s1", "test.event", n) for n in (1, 2, 3)]
        finally:
            await router.close()

    run(test())


def test_events_come_in_order_once_and_are_acknowledged_when_dealt_with(stage: Stage) -> None:
    async def test() -> None:
        async with serving(stage.address) as router:
            got: list[int] = []
            gate = asyncio.Event()

            async def second_takes_its_time() -> None:
                await gate.wait()

            def on_event(sandbox: str, topic: str, body: dict[str, Any]) -> Any:
                got.append(body["id"])
                if body["id"] == 1:
                    raise ValueError("a defect of the consumer")
                return second_takes_its_time() if body["id"] == 2 else None

            async def acked() -> list[int]:
                acked: list[int] = (await router.call("s1", "test.facts", {}, deadline=soon()))["acked_events"]
                return acked

            router.on_event = on_event
            stage.worker("s1")
            await router.call("s1", "test.publish", {"first": 1, "count": 4}, key="k", deadline=soon())
            await until(lambda: len(got) == 4)
            started = time.monotonic()
            while await acked() != [1]:
                await asyncio.sleep(0.01)
            assert time.monotonic() - started < 1.5
            gate.set()
            while await acked() != [1, 2, 3, 4]:
                await asyncio.sleep(0.01)
            assert got == [1, 2, 3, 4]

    run(test())


def test_events_that_nobody_acknowledged_come_again_to_the_next_gateway(stage: Stage) -> None:
    async def test() -> None:
        never = asyncio.Event()

        async def on_event_until_never(number: int) -> None:
            first.append(number)
            await never.wait()

        def on_event(sandbox: str, topic: str, body: dict[str, Any]) -> Coroutine[Any, Any, None]:
            return on_event_until_never(body["id"])

        first: list[int] = []
        async with serving(stage.address) as router:
            router.on_event = on_event
            stage.worker("s1")
            await router.call("s1", "test.publish", {"first": 1, "count": 100}, key="k", deadline=soon())
            await until(lambda: len(first) == 100)
        async with serving(stage.address) as router:
            again: list[int] = []
            router.on_event = lambda sandbox, topic, body: again.append(body["id"])
            await until(lambda: len(again) == 100)
            assert first == again == list(range(1, 101))

    run(test())


def test_the_events_of_a_successor_are_not_taken_for_repeats_of_its_predecessor(stage: Stage) -> None:
    async def test() -> None:
        async with serving(stage.address) as router:
            got: list[int] = []
            router.on_event = lambda sandbox, topic, body: got.append(body["id"])
            old = stage.worker("s1", 1)
            await router.call("s1", "test.publish", {"first": 1, "count": 5}, key="a", deadline=soon())
            await until(lambda: len(got) == 5)
            old.kill()
            stage.worker("s1", 2)
            await router.call("s1", "test.publish", {"first": 101, "count": 2}, key="b", deadline=soon())
            await until(lambda: len(got) == 7)
            while (facts := await router.call("s1", "test.facts", {}, deadline=soon()))["acked_events"] != [101, 102]:
                await asyncio.sleep(0.01)
            assert facts["stale"] == 0

    run(test())


def test_closing_tells_everyone_who_waits(stage: Stage) -> None:
    async def test() -> None:
        async with serving(stage.address) as router:
            stage.worker("s1")
            await router.wait_link("s1", soon())
            waits = [
                asyncio.ensure_future(router.call("s1", "test.hang", {})),
                asyncio.ensure_future(router.wait_link("nobody")),
            ]
            await asyncio.sleep(0)
        for wait in waits:
            with pytest.raises(errors.Unavailable, match="stopping"):
                await wait
        with pytest.raises(errors.Unavailable, match="stopping"):
            await router.call("s1", "test.echo", {})
        with pytest.raises(errors.Unavailable, match="stopping"):
            await router.wait_link("s1")

    run(test())


def test_two_gateways_cannot_serve_one_address(stage: Stage) -> None:
    async def test() -> None:
        async with serving(stage.address) as router:
            stage.worker("s1")
            await router.wait_link("s1", soon())
            second = BusRouter(stage.address)
            with pytest.raises(errors.Unavailable, match="another gateway"):
                await second.start()
            await second.close()
            assert await router.call("s1", "test.echo", {}, deadline=soon()) == {"key": ""}
            assert os.stat(stage.socket).st_mode & 0o777 == 0o600

    run(test())


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701])
def test_a_directory_that_others_may_enter_is_refused(stage: Stage, mode: int) -> None:
    async def test() -> None:
        os.chmod(stage.directory, mode)
        router = BusRouter(stage.address)
        with pytest.raises(errors.PermissionDenied, match="chmod 0700"):
            await router.start()
        await router.close()

    run(test())


def test_an_address_that_cannot_be_bound_is_an_error_and_leaves_nothing(stage: Stage) -> None:
    async def test() -> None:
        long = "x" * 120
        os.mkdir(f"{stage.directory}/{long}", 0o700)
        for address in (f"{stage.address}/missing/bus.sock", f"ipc://{stage.directory}/{long}/bus.sock"):
            before = set(os.listdir("/proc/self/fd"))
            router = BusRouter(address)
            with pytest.raises(OSError, match=r"No such file|longer than|Not a directory"):
                await router.start()
            await router.close()
            assert set(os.listdir("/proc/self/fd")) == before

    run(test())
