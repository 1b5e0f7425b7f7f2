"""What the reconciler decides, without anything being there."""

from __future__ import annotations

import pytest

from kuasar.supervisor.reconcile.plan import Action, Directory, Facts, Process, plan

ORPHAN = Facts(
    directories={"a": Directory(recorded=False)},
    processes=(Process(7, 70, "a", "kuasar-agent a"), Process(8, 80, "b", "kuasar-agent b")),
    cgroups=(("a", "/kubepods/kuasar-a"),),
    mounts=(("a", "/run/kuasar/sandboxes/a/shared/x"), ("a", "/run/kuasar/sandboxes/a/shared")),
    kept=(("a", "sandbox/a/c1"),),
    logs=(("a", "/var/log/kuasar/sandboxes/a.agent.log"),),
)


def steps(facts: Facts) -> list[tuple[str, str, str]]:
    return [(action.verb, action.sandbox, action.name) for action in plan(facts)]


def test_nothing_is_there() -> None:
    assert plan(Facts()) == []


def test_what_a_worker_answers_for_is_left_alone() -> None:
    facts = Facts(**{**vars(ORPHAN), "workers": frozenset({"a", "b"})})
    assert plan(facts) == []
    assert facts.orphans == frozenset()


def test_what_is_recorded_gets_a_worker_and_is_left_alone_otherwise() -> None:
    facts = Facts(**{**vars(ORPHAN), "directories": {"a": Directory(True), "b": Directory(True)}})
    assert steps(facts) == [("adopt", "a", "a"), ("adopt", "b", "b")]


def test_an_orphan_is_freed_users_first_and_its_directory_last() -> None:
    assert steps(ORPHAN) == [
        ("kill", "a", "7"),
        ("destroy-cgroup", "a", "/kubepods/kuasar-a"),
        ("unmount", "a", "/run/kuasar/sandboxes/a/shared/x"),
        ("unmount", "a", "/run/kuasar/sandboxes/a/shared"),
        ("drop", "a", "sandbox/a/c1"),
        ("remove", "a", "/var/log/kuasar/sandboxes/a.agent.log"),
        ("remove", "a", ""),
        ("kill", "b", "8"),
    ]


def test_without_supervisord_nobody_is_an_orphan() -> None:
    facts = Facts(**{**vars(ORPHAN), "workers": None, "half_made": ("/cache/k.new-1",)})
    assert steps(facts) == [("remove", "", "/cache/k.new-1")]


def test_a_damaged_record_is_set_aside_and_its_worker_retired() -> None:
    damaged = Directory(False, ("/run/a/sandbox.msgpack.damaged",))
    aside = ("set-aside", "a", "/run/a/sandbox.msgpack.damaged")
    assert steps(Facts({"a": damaged}, workers=frozenset({"a"}))) == [aside, ("retire", "a", "a")]
    assert steps(Facts({"a": damaged})) == [aside, ("remove", "a", "")]


def test_a_record_that_was_set_aside_earlier_is_the_reason() -> None:
    facts = Facts({"a": Directory(False)}, lost=frozenset({"a"}))
    assert [(action.verb, action.reason) for action in plan(facts)] == [("remove", "its record is lost")]


def test_a_sandbox_made_anew_beside_a_damaged_record_lives() -> None:
    both = Directory(True, ("/run/a/sandbox.msgpack.damaged",))
    found = steps(Facts({"a": both}, workers=frozenset({"a"})))
    assert found == [("set-aside", "a", "/run/a/sandbox.msgpack.damaged")]


def test_two_looks_agree_on_what_whatever_the_reason() -> None:
    assert Action("kill", "a", "7", "one", 70) == Action("kill", "a", "7", "another", 70)
    assert Action("kill", "a", "7", "one", 70) != Action("kill", "a", "7", "one", 71)


@pytest.mark.parametrize("sandbox", ["a", "z"])
def test_names_that_are_no_ids_are_only_told(sandbox: str) -> None:
    assert plan(Facts(strangers=(f".{sandbox}",))) == []
