"""The pictures: distribution of start times, memory by number of pods, where the time of a start goes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import matplotlib

from tests.bench.metrics import METRICS, POD_COUNTS, Who
from tests.bench.results import Results

matplotlib.use("Agg")  # files only; there is no display
from matplotlib import pyplot

_COLOURS: dict[Who, str] = {"ours": "tab:blue", "shim": "tab:orange", "wasm": "tab:green"}
_NAMES: dict[Who, str] = {"ours": "kuasar, runc engine", "shim": "containerd-shim-runc-v2", "wasm": "kuasar, Wasmtime"}
_ROLE_COLOURS = {"worker": "tab:blue", "agent": "tab:cyan", "shim": "tab:orange", "pause": "gold"}


def draw(results: Results, directory: str) -> list[str]:
    """Writes the pictures for which there are samples into ``directory``; gives their file names."""
    drawn = [
        _cdf(results, f"{directory}/start-times.png"),
        _memory(results, f"{directory}/memory.png"),
        _phases(results, f"{directory}/phases.png"),
    ]
    return [name for name in drawn if name]


def _save(figure: Any, path: str) -> str:
    figure.tight_layout()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return path.rpartition("/")[2]


def _cdf(results: Results, path: str) -> str:
    keys = [
        key for key in ("run_pod.host", "run_pod.cni", "run_pod.host.many", "first_output") if key in results.samples
    ]
    if not keys:
        return ""
    titles = {metric.key: metric.title for metric in METRICS}
    figure, axes = pyplot.subplots((len(keys) + 1) // 2, 2, figsize=(12, 4 * ((len(keys) + 1) // 2)), squeeze=False)
    for axis in axes.flat[len(keys) :]:
        axis.remove()
    for axis, key in zip(axes.flat, keys, strict=False):
        for who, values in results.samples[key].items():
            _one_cdf(axis, values, f"{_NAMES[who]} (p50 {statistics.median(values):.0f} ms)", _COLOURS[who])
        axis.set(title=titles[key], xlabel="ms", ylabel="share of starts", xlim=(0, None), ylim=(0, 1.02))
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right", fontsize=8)
    return _save(figure, path)


def _one_cdf(axis: Any, values: Sequence[float], label: str, colour: str) -> None:
    ordered = sorted(values)
    shares = [(place + 1) / len(ordered) for place in range(len(ordered))]
    axis.step([ordered[0], *ordered], [0, *shares], where="post", label=label, color=colour)


def _memory(results: Results, path: str) -> str:
    measured = results.details.get("memory", {})
    if not measured:
        return ""
    figure, axis = pyplot.subplots(figsize=(7, 4.2))
    counts = [str(count) for count in POD_COUNTS if any(str(count) in of for of in measured.values())]
    width = 0.8 / len(measured)
    for place, (who, by_count) in enumerate(measured.items()):
        for at, count in enumerate(counts):
            bottom = 0.0
            x = at + (place - (len(measured) - 1) / 2) * width
            for role, mib in by_count.get(count, {}).items():
                label = f"{_NAMES[who]}: {role}" if at == 0 else None
                axis.bar(x, mib, width * 0.9, bottom=bottom, label=label, **_look(role, who))
                bottom += mib
            axis.text(x, bottom, f"{bottom:.1f}", ha="center", va="bottom", fontsize=8)
    axis.set_xticks(range(len(counts)), [f"{count} pods" if count != "1" else "1 pod" for count in counts])
    axis.set(title="Memory of an idle pod", ylabel="MiB Pss per pod")
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=8)
    return _save(figure, path)


def _look(role: str, who: Who) -> dict[str, Any]:
    return {"color": _ROLE_COLOURS[role], "hatch": "//" if who == "wasm" else None}


def _phases(results: Results, path: str) -> str:
    networks = [network for network, starts in results.phases.items() if starts]
    if not networks:
        return ""
    figure, axis = pyplot.subplots(figsize=(9, 1.4 + 0.9 * len(networks)))
    colours = pyplot.get_cmap("tab20").colors
    names = list(dict.fromkeys(name for network in networks for start in results.phases[network] for name in start))
    for row, network in enumerate(networks):
        medians = {name: statistics.median(s.get(name, 0.0) for s in results.phases[network]) for name in names}
        total = results.median(f"run_pod.{network}", "ours") or sum(medians.values())
        medians["around the worker"] = max(total - sum(medians.values()), 0)
        left = 0.0
        for place, (name, taken) in enumerate(medians.items()):
            outside = name == "around the worker"
            colour = "lightgrey" if outside else colours[place % len(colours)]
            axis.barh(row, taken, left=left, color=colour, label=name if row == 0 else None)
            if taken > total * 0.04:
                axis.text(left + taken / 2, row, f"{taken:.1f}", ha="center", va="center", fontsize=8)
            left += taken
    axis.set_yticks(range(len(networks)), [{"host": "host network", "cni": "CNI"}[network] for network in networks])
    axis.set(title="One start of ours: medians of its phases", xlabel="ms")
    axis.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.35))
    return _save(figure, path)
