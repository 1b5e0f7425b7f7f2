"""The event loop: futures, tasks, cancellation, deadlines, timers, descriptors, locks, and unseen errors."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from kuasar.core.aio import Cancelled, Future, Lock, Loop, Task
from kuasar.core.errors import DeadlineExceeded


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def test_a_coroutine_gives_its_result_or_its_error(loop: Loop) -> None:
    async def good() -> int:
        return 7

    async def bad() -> int:
        raise ValueError("no")

    assert loop.run(good()) == 7
    with pytest.raises(ValueError, match="no"):
        loop.run(bad())


def test_tasks_run_side_by_side(loop: Loop) -> None:
    order: list[str] = []

    async def part(name: str, gate: Future[None], following: Future[None]) -> None:
        await gate
        order.append(name)
        following.set_result(None)

    async def scenario() -> None:
        first, second, third = loop.future(), loop.future(), loop.future()
        tasks = [loop.spawn(part("b", second, third)), loop.spawn(part("a", first, second))]
        first.set_result(None)
        await third
        for task in tasks:
            await task

    loop.run(scenario())
    assert order == ["a", "b"]


def test_the_first_end_of_a_future_counts(loop: Loop) -> None:
    future = loop.future()
    future.set_result(1)
    future.set_result(2)
    future.set_exception(ValueError())
    future.cancel()
    assert future.result() == 1


def test_cancelling_raises_where_it_waits_and_lets_it_clean_up(loop: Loop) -> None:
    seen: list[str] = []

    async def patient() -> None:
        try:
            await loop.future()
        except Cancelled:
            seen.append("cancelled")
            await loop.sleep(0.001)
            seen.append("cleaned up")
            raise

    async def scenario() -> None:
        task = loop.spawn(patient())
        await loop.sleep(0)
        task.cancel()
        with pytest.raises(Cancelled):
            await task
        task.cancel()  # harmless

    loop.run(scenario())
    assert seen == ["cancelled", "cleaned up"]


def test_a_deadline_cancels_a_coroutine_and_spares_a_future(loop: Loop) -> None:
    ended: list[str] = []

    async def endless() -> None:
        try:
            await loop.future()
        finally:
            ended.append("coroutine")

    async def scenario() -> None:
        with pytest.raises(DeadlineExceeded, match="the thing did not finish"):
            await loop.wait_for(endless(), time.monotonic() + 0.01, "the thing")
        future: Future[int] = loop.future()
        with pytest.raises(DeadlineExceeded):
            await loop.wait_for(future, time.monotonic() + 0.01)
        assert not future.done
        loop.call_soon(future.set_result, 3)
        assert await loop.wait_for(future, time.monotonic() + 5) == 3
        assert await loop.wait_for(future, None) == 3

    loop.run(scenario())
    assert ended == ["coroutine"]


def test_timers_fire_in_order_and_can_be_cancelled(loop: Loop) -> None:
    fired: list[int] = []

    async def scenario() -> None:
        loop.call_later(0.02, fired.append, 2)
        loop.call_later(0.001, fired.append, 1)
        loop.call_later(0.01, fired.append, 99).cancel()
        await loop.sleep(0.03)

    loop.run(scenario())
    assert fired == [1, 2]


def test_descriptors(loop: Loop) -> None:
    reader, writer = os.pipe()
    got: list[bytes] = []

    async def scenario() -> None:
        loop.add_reader(reader, lambda: got.append(os.read(reader, 10)))
        os.write(writer, b"x")
        while not got:
            await loop.sleep(0)
        loop.remove_reader(reader)
        os.write(writer, b"y")
        await loop.wait_readable(reader)
        writable: Future[None] = loop.future()
        loop.add_writer(writer, lambda: writable.set_result(None))
        await writable
        loop.remove_writer(writer)
        loop.remove_writer(writer)  # harmless

    try:
        loop.run(scenario())
        assert got == [b"x"]
        assert os.read(reader, 10) == b"y"
    finally:
        os.close(reader)
        os.close(writer)


def test_hang_up_wakes_a_reader(loop: Loop) -> None:
    reader, writer = os.pipe()

    async def scenario() -> bytes:
        waiting = loop.wait_readable(reader)
        os.close(writer)
        await waiting
        return os.read(reader, 1)

    try:
        assert loop.run(scenario()) == b""
    finally:
        os.close(reader)


def test_errors_that_nobody_awaits_are_told_and_end_nothing(loop: Loop) -> None:
    told: list[tuple[str, str]] = []
    loop.on_error = lambda what, exc: told.append((what, str(exc)))

    def broken() -> None:
        raise ValueError("in a callback")

    async def lost() -> None:
        raise ValueError("in a task")

    async def scenario() -> None:
        loop.call_soon(broken)
        loop.spawn(lost(), "lost")
        await loop.sleep(0.001)

    loop.run(scenario())
    assert sorted(message for _, message in told) == ["in a callback", "in a task"]


def test_a_lock_is_first_come_first_served_and_survives_cancellation(loop: Loop) -> None:
    order: list[str] = []
    lock = Lock(loop)

    async def use(name: str, hold: Future[None] | None = None) -> None:
        async with lock:
            order.append(name)
            if hold is not None:
                await hold

    async def scenario() -> None:
        hold: Future[None] = loop.future()
        first = loop.spawn(use("first", hold))
        second, third = loop.spawn(use("second")), loop.spawn(use("third"))
        await loop.sleep(0)
        second.cancel()
        hold.set_result(None)
        await first
        await third
        with pytest.raises(Cancelled):
            await second

    loop.run(scenario())
    assert order == ["first", "third"]


def test_a_task_that_cancels_itself_is_cancelled_at_its_next_wait(loop: Loop) -> None:
    async def scenario() -> None:
        tasks: list[Task[None]] = []

        async def suicidal() -> None:
            tasks[0].cancel()
            await loop.future()

        tasks.append(loop.spawn(suicidal()))
        with pytest.raises(Cancelled):
            await loop.wait_for(tasks[0], time.monotonic() + 5)

    loop.run(scenario())


def test_a_coroutine_has_unwound_when_its_deadline_is_told(loop: Loop) -> None:
    order: list[str] = []

    async def slow_to_clean_up() -> None:
        try:
            await loop.future()
        finally:
            await loop.sleep(0.01)
            order.append("clean")

    async def scenario() -> None:
        with pytest.raises(DeadlineExceeded):
            await loop.wait_for(slow_to_clean_up(), time.monotonic() + 0.001)
        order.append("told")

    loop.run(scenario())
    assert order == ["clean", "told"]


def test_a_coroutine_has_unwound_when_who_waits_for_it_has(loop: Loop) -> None:
    order: list[str] = []

    async def slow_to_clean_up() -> None:
        try:
            await loop.future()
        finally:
            await loop.sleep(0.01)
            order.append("inner")

    async def outer() -> None:
        try:
            await loop.wait_for(slow_to_clean_up(), time.monotonic() + 5)
        finally:
            order.append("outer")

    async def scenario() -> None:
        task = loop.spawn(outer())
        await loop.sleep(0.001)
        task.cancel()
        with pytest.raises(Cancelled):
            await task

    loop.run(scenario())
    assert order == ["inner", "outer"]


def test_a_result_that_comes_in_spite_of_the_deadline_counts_and_an_error_is_the_reason(loop: Loop) -> None:
    async def stubborn() -> int:
        try:
            await loop.future()
        except Cancelled:
            return 4
        return 0

    async def failing() -> None:
        try:
            await loop.future()
        finally:
            raise ValueError("while cleaning up")

    async def scenario() -> None:
        assert await loop.wait_for(stubborn(), time.monotonic() + 0.001) == 4
        with pytest.raises(DeadlineExceeded) as caught:
            await loop.wait_for(failing(), time.monotonic() + 0.001)
        assert isinstance(caught.value.__cause__, ValueError)

    loop.run(scenario())


def test_cancelled_timers_do_not_pile_up_until_they_are_due(loop: Loop) -> None:
    kept = [loop.call_later(3600 + n, pytest.fail) for n in range(10)]
    fired: list[int] = []

    async def scenario() -> None:
        for _ in range(10_000):
            loop.call_later(3600, pytest.fail).cancel()
        loop.call_later(0.001, fired.append, 1)
        await loop.sleep(0.01)

    loop.run(scenario())
    assert fired == [1]
    assert len(loop._timers) < 500
    assert {entry[2] for entry in loop._timers} >= set(kept)


def test_a_timer_may_be_cancelled_by_and_after_its_own_call(loop: Loop) -> None:
    async def scenario() -> None:
        called: Future[None] = loop.future()

        def call() -> None:
            timer.cancel()
            called.set_result(None)

        timer = loop.call_later(0, call)
        await called
        timer.cancel()
        timer.cancel()

    loop.run(scenario())
    assert loop._cancelled_timers == 0


def test_a_wait_for_a_descriptor_that_is_given_up_leaves_nothing_behind(loop: Loop) -> None:
    """The number is soon another file's: a reader that stayed would be deaf, or hear for the wrong one."""

    async def scenario() -> None:
        for _ in range(3):
            reader, writer = os.pipe()
            with pytest.raises(DeadlineExceeded):
                await loop.wait_for(loop.wait_readable(reader), time.monotonic() + 0.001)
            os.write(writer, b"x")
            await loop.wait_for(loop.wait_readable(reader), time.monotonic() + 5)
            os.close(reader)
            os.close(writer)

    loop.run(scenario())


def test_a_descriptor_closed_while_watched_does_not_deafen_its_successor(loop: Loop) -> None:
    async def scenario() -> None:
        reader, writer = os.pipe()
        loop.add_reader(reader, pytest.fail)
        os.close(reader)
        os.close(writer)
        again, writer = os.pipe()
        assert again == reader
        os.write(writer, b"x")
        await loop.wait_for(loop.wait_readable(again), time.monotonic() + 5)
        loop.add_reader(again, pytest.fail)
        os.close(again)
        loop.remove_reader(again)  # harmless, if late
        os.close(writer)

    loop.run(scenario())


def test_stopping_cancels_what_runs_and_lets_it_unwind(loop: Loop) -> None:
    unwound: list[bool] = []

    async def endless() -> None:
        try:
            await loop.future()
        finally:
            await loop.sleep(0.005)
            unwound.append(True)

    loop.call_later(0.001, loop.stop)
    with pytest.raises(Cancelled):
        loop.run(endless())
    assert unwound == [True]


def test_a_task_started_at_once_runs_to_its_first_wait_and_on_like_any_other(loop: Loop) -> None:
    order: list[str] = []

    async def part(gate: Future[None]) -> str:
        order.append("begun")
        await gate
        order.append("ended")
        return "result"

    async def short() -> int:
        return 1

    def begin() -> None:
        gate: Future[None] = loop.future()
        tasks.append(loop.spawn_now(part(gate)))
        order.append("spawned")
        assert loop.spawn_now(short()).result() == 1
        gate.set_result(None)

    tasks: list[Task[str]] = []

    async def scenario() -> None:
        loop.call_soon(begin)
        while not tasks:
            await loop.sleep(0)
        assert await tasks[0] == "result"

    loop.run(scenario())
    assert order == ["begun", "spawned", "ended"]
