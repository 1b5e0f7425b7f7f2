"""The dashboard and the alert rules that we ship name only what there is, and everything that there is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kuasar.api.gen.containerd.sandbox.v1 import controller_pb2
from kuasar.api.gen.containerd.task.v3 import task_pb2
from kuasar.core import errors
from kuasar.core.records import DAMAGED
from kuasar.gateway.metrics.catalogue import ALL
from kuasar.workers.states import State
from scripts import grafana
from tests.unit import promql

ETC = Path(__file__).parents[2] / "etc"
RULES = ETC / "prometheus" / "kuasar-alerts.yaml"
SERVICES = {"Controller": controller_pb2, "Task": task_pb2}
NOT_SHOWN = {
    "kuasar_build_info",
    "kuasar_processes",
    "kuasar_reconciler_last_look_timestamp_seconds",
    "kuasar_scrape_seconds",
    "kuasar_supervisord_up",
}
"""What has no panel: it is in a variable or an alert, or tells of the scrape itself."""

promql.KNOWN |= {
    "error": {kind.kind for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "kind")},
    "state": {state.value for state in State} | {DAMAGED},
    "method": {
        f"{name}.{method.name}"
        for name, module in SERVICES.items()
        for method in module.DESCRIPTOR.services_by_name[name].methods
    },
}


def rules() -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from group["rules"]


def targets() -> Iterator[tuple[str, dict[str, Any]]]:
    for panel in json.loads(grafana.PAGE.read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target


@pytest.mark.parametrize("rule", list(rules()), ids=lambda rule: rule["alert"])
def test_an_alert_can_fire_and_says_what_it_names(rule: dict[str, Any]) -> None:
    labels = promql.labels_of(rule["expr"])
    assert rule["labels"]["severity"] in ("warning", "critical")
    for text in rule["annotations"].values():
        named = set(re.findall(r"\$labels\.(\w+)", text))
        assert named <= labels, f"{sorted(named - labels)}: the expression gives {sorted(labels)}"
    assert "instance" in labels


def test_alerts_have_names_of_their_own() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) > 10


@pytest.mark.parametrize(("title", "target"), list(targets()))
def test_a_line_of_the_dashboard_has_data_and_a_legend(title: str, target: dict[str, Any]) -> None:
    labels = promql.labels_of(target["expr"])
    named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
    assert named <= labels, f"{sorted(named - labels)}: the expression gives {sorted(labels)}"


def test_every_metric_is_on_the_dashboard() -> None:
    shown: set[str] = set()
    for _, target in targets():
        shown |= promql.metrics_of(target["expr"])
    assert {metric.name for metric in ALL} - shown == NOT_SHOWN


def test_the_dashboard_is_up_to_date() -> None:
    assert grafana.PAGE.read_text(encoding="utf-8") == grafana.text(), "run: python -m scripts.grafana"


def test_panels_neither_overlap_nor_share_numbers() -> None:
    panels = json.loads(grafana.text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("kuasar_sandboxs", "no such metric"),
        ("sum by (pod) (kuasar_sandboxes)", "grouped by"),
        ('kuasar_sandboxes{node="a"}', "has no label"),
        ('kuasar_sandboxes{state="redy"}', "is not documented"),
        ("kuasar_bus_requests_total", "without a rate"),
        ("rate(kuasar_sandboxes[5m])", "a gauge in rate"),
        ("histogram_quantile(0.9, sum by (method) (rate(kuasar_rpc_seconds_bucket[5m])))", "without le"),
        ("sum by (engine) (kuasar_containers) > sum by (state) (kuasar_workers)", "nothing matches"),
    ],
)
def test_the_check_finds_what_is_wrong(expression: str, complaint: str) -> None:
    with pytest.raises(promql.Wrong, match=complaint):
        promql.labels_of(expression)
