"""What follows from samples: who is compared with whom, and what is said of promises."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from tests.bench import report
from tests.bench.contestants import COLD, CONTESTANTS, MACHINE, OURS, SHIM, WASM, WASMEDGE
from tests.bench.metrics import COMPARISONS, METRICS, TARGETS
from tests.bench.results import Results

RUNC, WASM_TABLE, MACHINES = COMPARISONS


def measured() -> Results:
    """A run with a bit of everything."""
    results = Results(facts={"started": "today"})
    results.add("first_output", OURS, 100.0)
    results.add("first_output", SHIM, 200.0)
    results.add("first_output", WASM, 90.0, 110.0)
    results.add("first_output", WASMEDGE, 130.0)
    results.add("machine.run", MACHINE, 500.0)
    results.add("machine.run", COLD, 5000.0)
    return results


def test_every_metric_is_in_a_table_and_every_target_of_somebody_in_it() -> None:
    shown = {key for comparison in COMPARISONS for key in comparison.metrics}
    assert shown == {metric.key for metric in METRICS}
    for target in TARGETS:
        assert any(target.metric in each.metrics and target.who in each.who for each in COMPARISONS), target
        assert (target.base is None) == (target.ratio is None) != (target.limit is None), target


def test_contestants_have_names_and_handlers_of_their_own() -> None:
    assert len({who.name for who in CONTESTANTS}) == len({who.handler for who in CONTESTANTS}) == len(CONTESTANTS)


def test_a_ratio_is_that_of_medians() -> None:
    results = measured()
    assert results.ratio("first_output", WASM, SHIM) == 0.5
    assert results.ratio("machine.run", MACHINE, COLD) == 0.1
    assert results.ratio("machine.run", OURS, SHIM) is None


def test_verdicts_say_whose_promise_was_missed_by_how_much() -> None:
    said = {(v.target.metric, v.target.who, v.target.limit): (v.met, v.got, v.missed_by) for v in measured().verdicts()}
    assert said == {
        ("first_output", WASM, None): (True, "0.50x", ""),
        ("first_output", WASMEDGE, None): (False, "0.65x", "0.15x (30%)"),
        ("machine.run", MACHINE, None): (True, "0.10x", ""),
        ("machine.run", MACHINE, 400.0): (False, "500.00 ms", "100.00 ms (25%)"),
    }


def test_a_table_has_the_metrics_of_those_it_looks_at() -> None:
    results = measured()
    assert [metric.key for metric in results.measured(RUNC)] == ["first_output"]
    assert [metric.key for metric in results.measured(MACHINES)] == ["machine.run"]
    assert not Results().measured(RUNC)
    (metric,) = results.measured(MACHINES)
    assert report.header(MACHINES) == ["metric", "unit", "machine", "cold", "machine/cold", "target", ""]
    assert report.row(results, MACHINES, metric)[2:] == [
        "500 / 500",
        "5000 / 5000",
        "0.10x",
        "at most 0.167x; at most 400 ms",
        "met; missed by 100.00 ms (25%)",
    ]
    (metric,) = results.measured(WASM_TABLE)
    assert report.row(results, WASM_TABLE, metric)[-2:] == [
        "at most 0.5x",
        "wasm met; wasmedge missed by 0.15x (30%)",
    ]


def test_json_names_contestants() -> None:
    written = json.loads(json.dumps(measured().to_json()))
    output = written["metrics"]["first_output"]
    assert set(output["who"]) == {"ours", "shim", "wasm", "wasmedge"}
    assert output["ratios"] == {"ours/shim": 0.5, "wasm/shim": 0.5, "wasmedge/shim": 0.65}
    assert {target["who"] for target in written["targets"]} == {"wasm", "wasmedge", "machine"}


def test_the_screen_shows_a_table_per_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    results = measured()
    results.problems.append("stdout: it broke")
    report.show(results, Console(width=200))
    shown = capsys.readouterr().out
    for comparison in COMPARISONS:
        assert comparison.title in shown
    assert "it broke" in shown


def test_who_has_no_sample_is_left_out() -> None:
    results = measured()
    results.add("machine.run.many", MACHINE, 900.0)
    results.add("machine.run.many", COLD, *())
    assert set(results.to_json()["metrics"]["machine.run.many"]["who"]) == {"machine"}
    assert results.ratio("machine.run.many", MACHINE, COLD) is None
