"""Watchers see what happens; one who does not read loses the oldest, and is told how many."""

from __future__ import annotations

import asyncio

from kuasar.gateway.feed import Feed


def test_each_watcher_sees_what_it_asked_for() -> None:
    async def scenario() -> None:
        feed = Feed()
        feed.tell("task.exit", "a", "k8s.io", exit_status=1)  # nobody watches
        with feed.watching() as everything, feed.watching("b") as one:
            feed.tell("task.exit", "a", "k8s.io", exit_status=2, topic="odd")
            feed.tell("task.oom", "b", "k8s.io")
            first, second = await everything.next(), await everything.next()
            assert (first.topic, first.sandbox, first.data) == ("task.exit", "a", {"exit_status": "2", "topic": "odd"})
            assert second.topic == (await one.next()).topic == "task.oom"
            waiting = asyncio.ensure_future(one.next())
            await asyncio.sleep(0)
            assert not waiting.done()
            feed.tell("worker.died", "b", "k8s.io")
            assert (await waiting).topic == "worker.died"

    asyncio.run(scenario())


def test_one_who_does_not_read_loses_the_oldest() -> None:
    async def scenario() -> None:
        feed = Feed(most_waiting=3)
        with feed.watching() as watcher:
            for number in range(5):
                feed.tell("t", str(number), "")
            seen = [await watcher.next() for _ in range(3)]
            assert [(event.sandbox, event.lost) for event in seen] == [("2", 2), ("3", 0), ("4", 0)]
            feed.tell("t", "5", "")
            assert (await watcher.next()).lost == 0

    asyncio.run(scenario())
