#!/usr/bin/env python3
"""Writes the Grafana dashboard, ``etc/grafana/kuasar.json``; a unit test compares the two.

``python -m scripts.grafana`` rewrites it. What is on the dashboard is the table :data:`ROWS`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "etc" / "grafana" / "kuasar.json"
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_HERE = 'instance=~"$instance"'
_WINDOW = "$__rate_interval"
_COLUMNS, _HEIGHT = 24, 8


@dataclass(frozen=True)
class Panel:
    """One picture: expressions with the legends of their lines."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    words: str = ""
    stacked: bool = False


def _rate(metric: str, by: str, matchers: str = "") -> str:
    inside = f"{_HERE}, {matchers}" if matchers else _HERE
    return f"sum by ({by}) (rate({metric}{{{inside}}}[{_WINDOW}]))"


def _quantile(share: float, metric: str, by: str) -> str:
    return f"histogram_quantile({share}, {_rate(f'{metric}_bucket', f'{by}, le')})"


def _sum(metric: str, by: str, matchers: str = "") -> str:
    inside = f"{_HERE}, {matchers}" if matchers else _HERE
    return f"sum by ({by}) ({metric}{{{inside}}})"


def _now(metric: str) -> str:
    return f"{metric}{{{_HERE}}}"


def _quantiles(metric: str, by: str, legend: str) -> tuple[tuple[str, str], ...]:
    return tuple((_quantile(share, metric, by), f"{legend} p{round(share * 100)}") for share in (0.5, 0.95, 0.99))


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Sandboxes",
        (
            Panel(
                "Sandboxes by state", "short", ((_sum("kuasar_sandboxes", "engine, state"), "{{engine}} {{state}}"),)
            ),
            Panel("Containers", "short", ((_sum("kuasar_containers", "engine"), "{{engine}}"),)),
            Panel(
                "Ends",
                "ops",
                ((_rate("kuasar_sandbox_ends_total", "engine, how"), "{{engine}} {{how}}"),),
                "died: by themselves; kuasarctl why names the reason for a day.",
            ),
            Panel("Memory shortages", "ops", ((_rate("kuasar_container_oom_kills_total", "engine"), "{{engine}}"),)),
        ),
    ),
    (
        "Starts",
        (
            Panel(
                "Start latency",
                "s",
                _quantiles("kuasar_sandbox_start_seconds", "engine, path", "{{engine}} {{path}}"),
                "By how the machine came up.",
            ),
            Panel(
                "Where the time goes",
                "s",
                (
                    (
                        f"{_rate('kuasar_sandbox_start_phase_seconds_sum', 'engine, path, phase')} / "
                        f"{_rate('kuasar_sandbox_start_phase_seconds_count', 'engine, path, phase')}",
                        "{{engine}} {{path}}: {{phase}}",
                    ),
                ),
                "Mean of each phase.",
                stacked=True,
            ),
            Panel(
                "Starts",
                "ops",
                (
                    (_rate("kuasar_sandbox_start_seconds_count", "engine, path"), "{{engine}} {{path}}"),
                    (_rate("kuasar_sandbox_start_failures_total", "engine, error"), "{{engine}} failed: {{error}}"),
                ),
            ),
            Panel(
                "Templates",
                "ops",
                ((_rate("kuasar_template_starts_total", "engine, result"), "{{engine}} {{result}}"),),
                "hit: cloned; miss and failed: booted.",
                stacked=True,
            ),
        ),
    ),
    (
        "Requests",
        (
            Panel("Latency", "s", _quantiles("kuasar_rpc_seconds", "method", "{{method}}")),
            Panel("Requests", "reqps", ((_rate("kuasar_rpc_seconds_count", "method"), "{{method}}"),)),
            Panel("Errors", "reqps", ((_rate("kuasar_rpc_errors_total", "method, error"), "{{method}} {{error}}"),)),
            Panel(
                "Under way",
                "short",
                ((_now("kuasar_rpc_in_flight"), "{{instance}}"), (_now("kuasar_rpc_in_flight_limit"), "limit")),
            ),
        ),
    ),
    (
        "Workers and bus",
        (
            Panel(
                "Workers",
                "short",
                (
                    (_sum("kuasar_workers", "state"), "supervisord: {{state}}"),
                    (_sum("kuasar_bus_links", "state"), "bus: {{state}}"),
                    (_now("kuasar_bus_silent_workers"), "silent"),
                ),
            ),
            Panel(
                "Restarts and deaths",
                "ops",
                (
                    (_rate("kuasar_worker_restarts_total", "engine"), "restarts {{engine}}"),
                    (_rate("kuasar_worker_deaths_total", "instance"), "ends, also in order"),
                ),
            ),
            Panel(
                "Queues",
                "short",
                (
                    (_now("kuasar_bus_pending_requests"), "requests not answered"),
                    (_now("kuasar_bus_pending_requests_max"), "the most of one sandbox"),
                    (_now("kuasar_bus_unsent_requests"), "requests not sent"),
                    (_now("kuasar_containerd_events_waiting"), "events for containerd"),
                ),
            ),
            Panel(
                "Messages",
                "ops",
                (
                    (_rate("kuasar_bus_requests_total", "instance"), "requests"),
                    (_rate("kuasar_bus_replies_total", "instance"), "replies"),
                    (_rate("kuasar_bus_events_total", "instance"), "events"),
                    (_rate("kuasar_bus_resent_requests_total", "instance"), "sent again"),
                    (_rate("kuasar_bus_dropped_messages_total", "why"), "dropped: {{why}}"),
                    (_rate("kuasar_containerd_events_delivered_total", "instance"), "events delivered"),
                    (_rate("kuasar_containerd_events_dropped_total", "instance"), "events lost"),
                    (_rate("kuasar_traces_total", "result"), "traces {{result}}"),
                ),
            ),
        ),
    ),
    (
        "What is held",
        (
            Panel(
                "Leaks", "short", ((_sum("kuasar_objects_leaked", "kind"), "{{kind}}"),), "Anything but 0 is a leak."
            ),
            Panel(
                "Recorded and alive",
                "short",
                (
                    (_sum("kuasar_objects_recorded", "kind"), "{{kind}} recorded"),
                    (_sum("kuasar_objects_alive", "kind"), "{{kind}} alive"),
                ),
            ),
            Panel(
                "Reconciler", "ops", ((_rate("kuasar_reconciler_steps_total", "verb, result"), "{{verb}} {{result}}"),)
            ),
            Panel(
                "Output passed on",
                "Bps",
                ((_rate("kuasar_stdio_bytes_total", "engine, stream"), "{{engine}} {{stream}}"),),
            ),
        ),
    ),
    (
        "Our own processes",
        (
            Panel(
                "Memory",
                "bytes",
                ((_sum("kuasar_process_proportional_memory_bytes", "process"), "{{process}}"),),
                "Proportional set size.",
                stacked=True,
            ),
            Panel(
                "Machines' memory",
                "bytes",
                ((_sum("kuasar_process_resident_memory_bytes", "process", 'process="machine"'), "resident"),),
            ),
            Panel("Descriptors", "short", ((_sum("kuasar_process_open_fds", "process"), "{{process}}"),)),
            Panel(
                "Processor time of the gateway",
                "percentunit",
                ((_rate("process_cpu_seconds_total", "instance"), "{{instance}}"),),
            ),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """The whole of it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        panels.append(
            {"type": "row", "title": title, "collapsed": False, "gridPos": _place(0, y, _COLUMNS, 1), "panels": []}
        )
        width = _COLUMNS // len(row)
        panels += [_panel(panel, _place(index * width, y + 1, width, _HEIGHT)) for index, panel in enumerate(row)]
        y += 1 + _HEIGHT
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    return {
        "title": "Kuasar",
        "uid": "kuasar",
        "tags": ["kuasar"],
        "editable": True,
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_source_variable(), _instance_variable()]},
        "panels": panels,
    }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    custom: dict[str, Any] = {"fillOpacity": 20 if panel.stacked else 5, "showPoints": "never"}
    if panel.stacked:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.words,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": _SOURCE, "expr": expression, "legendFormat": legend}
            for index, (expression, legend) in enumerate(panel.lines)
        ],
    }


def _source_variable() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _instance_variable() -> dict[str, Any]:
    return {
        "name": "instance",
        "label": "Node",
        "type": "query",
        "datasource": _SOURCE,
        "query": "label_values(kuasar_build_info, instance)",
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }


def text() -> str:
    """As it lies in the file."""
    return json.dumps(dashboard(), indent=1) + "\n"


def main() -> None:
    """Rewrite the file."""
    PAGE.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
