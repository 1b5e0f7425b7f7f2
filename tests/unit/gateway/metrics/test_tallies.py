"""What is counted, and that a copy is a copy."""

from __future__ import annotations

from kuasar.gateway.metrics import catalogue as c
from kuasar.gateway.metrics.tallies import Histogram, Tallies, Value


def tallies() -> Tallies:
    return Tallies(lambda sandbox: {"s1": "runc", "s2": "qemu"}.get(sandbox, "unknown"))


def counts(value: Value) -> list[int]:
    assert isinstance(value, Histogram)
    return value.counts


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert histogram.total == 14.0


def test_a_copy_does_not_change() -> None:
    made = tallies()
    made.answered("Task.State", 0.1, "")
    before = made.values()
    made.answered("Task.State", 0.1, "not_found")
    assert sum(counts(before[c.RPC]["Task.State",])) == 1
    assert c.RPC_ERRORS not in before
    after = made.values()
    assert sum(counts(after[c.RPC]["Task.State",])) == 2
    assert after[c.RPC_ERRORS] == {("Task.State", "not_found"): 1}


def test_a_wait_has_no_latency_but_may_fail() -> None:
    made = tallies()
    made.answered("Task.Wait", None, "cancelled")
    assert made.values() == {c.RPC_ERRORS: {("Task.Wait", "cancelled"): 1}}


def test_a_start_and_its_phases() -> None:
    made = tallies()
    made.started("s2", 0.3, {"phases": [["vmm", 150.0], ["agent", 20.5]], "path": "clone", "template": "hit"})
    made.started("s1", 0.02, {"phases": [["agent", 9.0]], "path": "fork", "template": ""})
    made.start_failed("gone", "unavailable")
    values = made.values()
    assert set(values[c.START]) == {("qemu", "clone"), ("runc", "fork")}
    agent = values[c.PHASE]["qemu", "clone", "agent"]
    assert isinstance(agent, Histogram)
    assert agent.total == 0.0205
    assert values[c.TEMPLATE_STARTS] == {("qemu", "hit"): 1}
    assert values[c.START_FAILURES] == {("unknown", "unavailable"): 1}


def test_a_restart_is_a_new_generation_of_a_known_worker() -> None:
    made = tallies()
    made.greeted("s1", 7)  # as it was when this gateway began
    made.greeted("s1", 7)  # a new connection
    assert made.values() == {}
    made.greeted("s1", 8)
    assert made.values() == {c.RESTARTS: {("runc",): 1}}
    made.removed("s1")
    made.greeted("s1", 1)  # another sandbox of that name
    made.removed("unknown")
    assert made.values() == {c.RESTARTS: {("runc",): 1}}


def test_what_workers_tell() -> None:
    made = tallies()
    made.told("s2", "task.exit", {"stdout_bytes": 5, "stderr_bytes": 7})
    made.told("s2", "task.exit", {"stdout_bytes": 1})
    made.told("s1", "task.oom", {})
    made.told("s1", "sandbox.exit", {"exit_status": 0})
    made.told("s1", "sandbox.exit", {"exit_status": 255})
    made.told("s1", "sandbox.something", {})
    assert made.values() == {
        c.STDIO: {("qemu", "stdout"): 6, ("qemu", "stderr"): 7},
        c.OOMS: {("runc",): 1},
        c.ENDS: {("runc", "stopped"): 1, ("runc", "died"): 1},
    }
