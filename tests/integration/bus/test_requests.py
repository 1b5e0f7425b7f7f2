"""Requests between a real router and real workers: answers, errors, deadlines, limits, repeats."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import pytest

from kuasar.bus.messages import MAX_MESSAGE_BYTES, Hello
from kuasar.core import errors
from tests.integration.bus.conftest import Stage
from tests.integration.bus.helpers import run, serving, soon, until


def test_a_worker_greets_and_answers(stage: Stage) -> None:
    async def test() -> None:
        greetings: list[Hello] = []
        async with serving(stage.address) as router:
            router.on_hello = greetings.append
            worker = stage.worker("s1", 7)
            link = await router.wait_link("s1", soon())
            assert link.hello == greetings[0]
            assert (link.state, link.generation, link.hello.pid) == ("alive", 7, worker.pid)
            assert (link.hello.namespace, link.hello.state, link.hello.containers) == ("k8s.io", "ready", ["c1", "c2"])
            body = {"text": "ü", "bytes": b"\x00\xff", "list": [1, None, 2.5], "map": {"a": True}}
            assert await router.call("s1", "test.echo", body, deadline=soon()) == {**body, "key": ""}

    run(test())


def test_a_call_waits_for_the_worker_to_come(stage: Stage) -> None:
    async def test() -> None:
        async with serving(stage.address) as router:
            call = asyncio.ensure_future(router.call("s1", "test.echo", {"n": 1}, key="k", deadline=soon()))
            await asyncio.sleep(0)
            stage.worker("s1")
            assert await call == {"n": 1, "key": "k"}
            assert router.counters["resent"] == 0

    run(test())


def test_errors_of_a_worker_arrive_as_what_they_are(stage: Stage) -> None:
    async def test() -> None:
        async with serving(stage.address) as router:
            stage.worker("s1")
            with pytest.raises(errors.NotFound, match="container c9 does not exist") as caught:
                await router.call("s1", "test.refuse", {}, deadline=soon())
            assert caught.value.data == {"container": "c9"}
            with pytest.raises(errors.Internal, match=r"test\.break: ZeroDivisionError: a defect"):
                await router.call("s1", "test.break", {}, key="k", deadline=soon())
            with pytest.raises(errors.Unimplemented, match="nonsense"):
                await router.call("s1", "test.nonsense", {}, deadline=soon())

    run(test())


def test_what_is_too_large_is_refused_on_the_side_where_it_arises(stage: Stage) -> None:
    async def test() -> None:
        async with serving(stage.address) as router:
            stage.worker("s1")
            await router.wait_link("s1", soon())
            with pytest.raises(errors.InvalidArgument, match="at most 16777216") as caught:
                await router.call("s1", "test.echo", {"data": bytes(MAX_MESSAGE_BYTES)}, deadline=soon())
            assert caught.value.field == "body"
            with pytest.raises(errors.InvalidArgument, match="serialize"):
                await router.call("s1", "test.echo", {"data": object()}, deadline=soon())
            with pytest.raises(errors.Internal, match="at most 16777216"):
                await router.call("s1", "test.large", {"size": MAX_MESSAGE_BYTES}, deadline=soon())
            large = {"data": bytes(MAX_MESSAGE_BYTES - 4096)}
            assert len((await router.call("s1", "test.echo", large, deadline=soon()))["data"]) > 16_000_000

    run(test())


def test_without_a_worker_a_call_is_unavailable_at_its_deadline(stage: Stage) -> None:
    async def test() -> None:
        async with serving(stage.address) as router:
            started = time.monotonic()
            with pytest.raises(errors.Unavailable, match="worker of sandbox s1 was not there in time"):
                await router.call("s1", "test.echo", {}, deadline=soon(0.2))
            with pytest.raises(errors.Unavailable, match="worker of sandbox s1 was not there in time"):
                await router.wait_link("s1", soon(0.2))
            assert 0.4 <= time.monotonic() - started < 5
            with pytest.raises(errors.DeadlineExceeded):
                await router.call("s1", "test.echo", {}, deadline=time.monotonic() - 1)

    run(test())


def test_at_the_deadline_the_caller_is_told_and_a_read_is_cancelled(stage: Stage) -> None:
    async def test() -> None:
        async with serving(stage.address) as router:
            stage.worker("s1")
            await router.wait_link("s1", soon())
            with pytest.raises(errors.DeadlineExceeded, match=r"test\.hang: sandbox s1 did not answer in time"):
                await router.call("s1", "test.hang", {}, deadline=soon(0.2))
            while (facts := await router.call("s1", "test.facts", {}, deadline=soon()))["cancelled"] != 1:
                await asyncio.sleep(0.01)
            assert facts["acked_keys"] == []

    run(test())


def test_a_read_whose_caller_goes_away_is_cancelled_and_a_change_is_not(stage: Stage) -> None:
    async def test() -> None:
        async with serving(stage.address) as router:
            stage.worker("s1")
            await router.wait_link("s1", soon())
            calls = [
                asyncio.ensure_future(router.call("s1", "test.hang", {}, key=key, deadline=None)) for key in ("", "k")
            ]
            await router.call("s1", "test.facts", {}, deadline=soon())
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            while (facts := await router.call("s1", "test.facts", {}, deadline=soon()))["cancelled"] != 1:
                await asyncio.sleep(0.01)
            assert facts["acked_keys"] == []
            link = router.link("s1")
            assert link is not None
            assert not link.pending

    run(test())


def test_the_same_key_is_done_once_and_acknowledged(stage: Stage) -> None:
    async def test() -> None:
        async with serving(stage.address) as router:
            stage.worker("s1")
            twins = [router.call("s1", "test.count", {"seconds": 0.05}, key="k", deadline=soon()) for _ in range(3)]
            assert await asyncio.gather(*twins) == [{"key": "k"}] * 3
            results: list[Any] = await asyncio.gather(
                router.call("s1", "test.count", {"seconds": 0.05}, key="k2", deadline=soon()),
                router.call("s1", "test.count", {"seconds": 0.06}, key="k2", deadline=soon()),
                return_exceptions=True,
            )
            assert results[0] == {"key": "k2"}
            assert isinstance(results[1], errors.InvalidArgument)
            assert stage.lines("count") == ["k", "k2"]
            while (facts := await router.call("s1", "test.facts", {}, deadline=soon()))["acked_keys"][:3] != ["k"] * 3:
                await asyncio.sleep(0.01)
            assert facts["requests"] >= 2

    run(test())


def test_requests_under_way_are_limited_per_sandbox(stage: Stage) -> None:
    async def test() -> None:
        async with serving(stage.address, max_requests_per_sandbox=5) as router:
            stage.worker("s1")
            stage.worker("s2")
            waits = [asyncio.ensure_future(router.call("s1", "test.hang", {})) for _ in range(5)]
            await asyncio.sleep(0)
            with pytest.raises(errors.ResourceExhausted, match="5 requests are under way for sandbox s1"):
                await router.call("s1", "test.echo", {}, deadline=soon())
            assert await router.call("s2", "test.echo", {}, deadline=soon()) == {"key": ""}
            waits[0].cancel()
            await asyncio.gather(waits[0], return_exceptions=True)
            assert await router.call("s1", "test.echo", {}, deadline=soon()) == {"key": ""}
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    run(test())


def test_a_worker_that_does_not_read_gets_everything_when_it_reads_again(stage: Stage) -> None:
    """More than both queues and the socket between them hold: nothing is lost, nothing blocks the others."""

    async def test() -> None:
        async with serving(stage.address, max_requests_per_sandbox=10_000) as router:
            slow = stage.worker("slow")
            stage.worker("other")
            await router.wait_link("slow", soon())
            slow.send_signal(signal.SIGSTOP)
            calls = [
                asyncio.ensure_future(router.call("slow", "test.echo", {"n": n, "pad": bytes(500)}, deadline=soon()))
                for n in range(6000)
            ]
            await until(lambda: router.counters["full"] > 0)
            assert (await router.call("other", "test.echo", {"n": 0}, deadline=soon()))["n"] == 0
            slow.send_signal(signal.SIGCONT)
            answers = await asyncio.gather(*calls)
            assert [answer["n"] for answer in answers] == list(range(6000))
            facts = await router.call("slow", "test.facts", {}, deadline=soon())
            assert facts["requests"] == 6001

    run(test())


def test_fifty_workers_answer_side_by_side(stage: Stage) -> None:
    async def test() -> None:
        async with serving(stage.address) as router:
            stage.workers("w", 50)
            names = [f"w{n}" for n in range(50)]
            pids: set[int] = set()

            async def ask(name: str) -> None:
                for n in range(20):
                    reply: dict[str, Any] = await router.call(name, "test.echo", {"n": n}, deadline=soon())
                    assert reply["n"] == n
                pids.add((await router.call(name, "test.facts", {}, deadline=soon()))["pid"])

            await asyncio.gather(*map(ask, names))
            assert len(pids) == 50

    run(test())


def test_the_last_answer_of_a_worker_that_leaves_arrives(stage: Stage) -> None:
    async def test() -> None:
        async with serving(stage.address) as router:
            worker = stage.worker("s1")
            assert await router.call("s1", "test.leave", {}, key="k", deadline=soon()) == {"last": "words"}
            assert await asyncio.to_thread(worker.wait, 10) == 0

    run(test())
