"""Answers kept for repeats: done once, joined, repeated, acknowledged, bounded."""

from __future__ import annotations

from typing import Any

import pytest

from kuasar.core.errors import InvalidArgument
from kuasar.core.replies import MAX_AGE_SECONDS, MAX_ANSWERS, ReplyCache

BODY = {"id": "c1", "nested": {"list": [1, 2, b"x"]}}
ANSWER = {"body": {"pid": 7}}


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def never(answer: dict[str, Any]) -> None:
    pytest.fail(f"nobody may be answered here, got {answer}")


def test_a_new_key_is_carried_out_and_a_repeat_gets_the_same_answer() -> None:
    cache = ReplyCache()
    got: list[Any] = []
    assert cache.begin("k", "task.create", BODY, never)
    cache.store("k", ANSWER)
    assert not cache.begin("k", "task.create", dict(BODY), got.append)
    assert got == [ANSWER]


def test_repeats_join_while_it_is_under_way() -> None:
    cache = ReplyCache()
    got: list[Any] = []
    assert cache.begin("k", "op", BODY, never)
    assert not cache.begin("k", "op", BODY, lambda answer: got.append(("second", answer)))
    assert not cache.begin("k", "op", BODY, lambda answer: got.append(("third", answer)))
    assert not got
    cache.store("k", ANSWER)
    assert got == [("second", ANSWER), ("third", ANSWER)]


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize(("op", "body"), [("other", BODY), ("op", {"id": "c2"}), ("op", {})])
def test_the_key_of_another_request_is_refused(answered: bool, op: str, body: dict[str, Any]) -> None:
    cache = ReplyCache()
    cache.begin("k", "op", BODY, never)
    if answered:
        cache.store("k", ANSWER)
    with pytest.raises(InvalidArgument) as caught:
        cache.begin("k", op, body, never)
    assert caught.value.field == "key"
    assert "'k'" in caught.value.message


def test_the_empty_key_is_never_kept() -> None:
    cache = ReplyCache()
    for _ in range(3):
        assert cache.begin("", "task.wait", BODY, never)
        cache.store("", ANSWER)
    assert len(cache) == 0


def test_an_acknowledged_answer_is_forgotten() -> None:
    cache = ReplyCache()
    for key in ("a", "b"):
        cache.begin(key, "op", BODY, never)
        cache.store(key, ANSWER)
    cache.ack(["a", "unknown"])
    assert len(cache) == 1
    assert cache.begin("a", "op", {"another": "body"}, never)


def test_an_answer_acknowledged_before_it_is_there_is_not_kept_but_given_to_who_joined() -> None:
    cache = ReplyCache()
    got: list[Any] = []
    cache.begin("k", "op", BODY, never)
    cache.begin("k", "op", BODY, got.append)
    cache.ack(["k"])
    cache.store("k", ANSWER)
    assert got == [ANSWER]
    assert len(cache) == 0


def test_the_number_of_answers_is_bounded_and_the_oldest_go_first() -> None:
    cache = ReplyCache()
    got: list[Any] = []
    for n in range(MAX_ANSWERS + 5):
        cache.begin(f"k{n}", "op", BODY, never)
        cache.store(f"k{n}", {"body": {"n": n}})
    assert len(cache) == MAX_ANSWERS
    assert cache.dropped == 5
    assert cache.begin("k4", "op", BODY, never)
    assert not cache.begin("k5", "op", BODY, got.append)
    assert got == [{"body": {"n": 5}}]


def test_what_is_under_way_is_never_given_up() -> None:
    cache = ReplyCache()
    got: list[Any] = []
    cache.begin("slow", "op", BODY, never)
    for n in range(MAX_ANSWERS + 5):
        cache.begin(f"k{n}", "op", BODY, never)
        cache.store(f"k{n}", ANSWER)
    assert not cache.begin("slow", "op", BODY, got.append)
    cache.store("slow", ANSWER)
    assert got == [ANSWER]


def test_old_answers_are_given_up_with_the_next_one() -> None:
    clock = Clock()
    cache = ReplyCache(clock)
    for key in ("old", "young"):
        cache.begin(key, "op", BODY, never)
        cache.store(key, ANSWER)
        clock.now += MAX_AGE_SECONDS / 2
    clock.now += 1
    cache.begin("new", "op", BODY, never)
    cache.store("new", ANSWER)
    assert len(cache) == 2
    assert cache.begin("old", "op", BODY, never)
