"""What a round of the reconciler tells those who watch the node."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from kuasar.core.config import Config
from kuasar.core.reconciled import Look, read
from kuasar.core.records import seal
from kuasar.supervisor.reconcile.apply import Outcome
from kuasar.supervisor.reconcile.plan import Action, Facts, Process
from kuasar.supervisor.reconcile.report import LEAKS, tell

STEPS = [
    (Action("adopt", "s1", "s1", "why"), "sandbox-without-worker"),
    (Action("retire", "s1", "s1", "why"), "worker-without-record"),
    (Action("kill", "s1", "42", "why", 7), "process"),
    (Action("destroy-cgroup", "s1", "/kuasar/x", "why"), "cgroup"),
    (Action("unmount", "s1", "/m", "why"), "mount"),
    (Action("drop", "s1", "sandbox/s1/x", "why"), "keeper-entry"),
    (Action("set-aside", "s1", "/r.damaged", "why"), "damaged-record"),
    (Action("remove", "s1", "", "why"), "directory"),
    (Action("remove", "s1", "/l.log", "why"), "log"),
    (Action("remove", "", "/c/templates/x.new-1", "why"), "template"),
]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return replace(Config(), state_dir=str(tmp_path))


def told(config: Config, outcomes: list[Outcome], facts: Facts | None = None, dry_run: bool = False) -> Look:
    tell(config, facts or Facts(), outcomes, dry_run)
    found = read(config.state_dir)
    assert found is not None
    assert abs(found.at - time.time()) < 60
    return found


def test_every_kind_of_leak_has_a_step() -> None:
    assert {kind for _, kind in STEPS} == set(LEAKS)


@pytest.mark.parametrize(("action", "kind"), STEPS)
def test_what_stays_is_a_leak(config: Config, action: Action, kind: str) -> None:
    nothing = dict.fromkeys(LEAKS, 0)
    assert told(config, [Outcome(action)], dry_run=True).leaked == nothing | {kind: 1}
    assert told(config, [Outcome(action, "busy")]).leaked == nothing | {kind: 1}
    after = told(config, [Outcome(action)])
    assert after.leaked == nothing
    assert after.steps == {action.verb: {"failed": 1, "done": 1}}  # a dry run takes none


def test_what_is_recorded_and_what_there_is(config: Config) -> None:
    for sandbox, state in (("s1", "ready"), ("s2", "stopped")):
        directory = Path(config.sandboxes_dir, sandbox)
        directory.mkdir(parents=True)
        holdings = [["cgroup", f"/kuasar-no-such-{sandbox}"], ["socket", "/x"]]
        (directory / "sandbox.msgpack").write_bytes(seal({"state": state, "holdings": holdings}))
    processes = (Process(1, 1, "s1", "agent"), Process(2, 1, "s1", "virtiofsd"))
    facts = Facts(workers=frozenset({"s1"}), processes=processes, cgroups=(("lost", "/kuasar/lost"),))
    found = told(config, [], facts)
    assert found.recorded == {"worker": 2, "machine": 1, "cgroup": 2}
    assert found.alive == {"worker": 1, "machine": 1, "cgroup": 1}
