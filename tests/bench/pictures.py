"""The pictures: distribution of start times, memory by number of pods, where the time of a start goes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

from tests.bench.contestants import COLD, CONTESTANTS, MACHINE, OURS, Contestant
from tests.bench.metrics import metric_of
from tests.bench.results import Results

matplotlib.use("Agg")  # files only; there is no display
from matplotlib import pyplot, ticker

_ROLE_COLOURS = {
    "worker": "tab:blue",
    "agent": "tab:cyan",
    "shim": "tab:orange",
    "pause": "gold",
    "container": "tab:gray",
    "memory file": "tab:purple",
    "QEMU, anonymous": "plum",
    "QEMU, files": "thistle",
    "virtiofsd": "tab:pink",
}
_HATCHES = {"wasm": "//", "wasmedge": "\\\\"}
_CDFS = ("run_pod.host", "run_pod.cni", "run_pod.host.many", "first_output")
_MACHINE_CDFS = ("machine.run", "machine.first_output", "machine.run.many")
_MEMORIES = {"memory": "Idle pod", "memory.container": "Pod with an idle container"}
_FAR_APART = 3.0
"""From which ratio of the slowest to the fastest start on an axis is logarithmic, where that is allowed."""
_NETWORKS = {"host": "host network", "cni": "CNI"}


def draw(results: Results, directory: str) -> list[str]:
    """Writes the pictures for which there are samples into ``directory``; gives their file names."""
    networks = {label: (name, f"run_pod.{name}", OURS) for name, label in _NETWORKS.items()}
    starts = {"clone": (MACHINE.name, "machine.run", MACHINE), "boot": (COLD.name, "machine.run", COLD)}
    drawn = [
        _cdf(results, _CDFS, f"{directory}/start-times.png"),
        _cdf(results, _MACHINE_CDFS, f"{directory}/machine-start-times.png", logarithmic=True),
        _memory(results, _MEMORIES, f"{directory}/memory.png"),
        _memory(results, {"machine": "Idle machine"}, f"{directory}/machine-memory.png"),
        _phases(results, networks, "One start of ours", f"{directory}/phases.png"),
        # a boot takes so much longer that its phases would leave nothing to see of a clone's
        _phases(results, {"clone": starts["clone"]}, "Start of a clone", f"{directory}/machine-phases.png"),
        _phases(results, {"boot": starts["boot"]}, "Start of a machine that boots", f"{directory}/boot-phases.png"),
    ]
    return [name for name in drawn if name]


def _save(figure: Any, path: str, *, tight: bool = True) -> str:
    if tight:
        figure.tight_layout()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return path.rpartition("/")[2]


def _cdf(results: Results, wanted: Sequence[str], path: str, *, logarithmic: bool = False) -> str:
    keys = [key for key in wanted if key in results.samples]
    if not keys:
        return ""
    columns = min(len(keys), 2 if len(keys) != 3 else 3)
    rows = -(-len(keys) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(6 * columns, 4 * rows), squeeze=False)
    for axis in axes.flat[len(keys) :]:
        axis.remove()
    for axis, key in zip(axes.flat, keys, strict=False):
        for who, values in results.samples[key].items():
            _one_cdf(axis, values, f"{who.title} (p50 {statistics.median(values):.0f} ms)", who.colour)
        axis.set(title=metric_of(key).title, xlabel="ms", ylabel="share of starts", ylim=(0, 1.02))
        times = [time for values in results.samples[key].values() for time in values]
        if logarithmic and max(times) > _FAR_APART * min(times):
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        else:
            axis.set_xlim(0, None)
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right", fontsize=8)
    return _save(figure, path)


def _one_cdf(axis: Any, values: Sequence[float], label: str, colour: str) -> None:
    ordered = sorted(values)
    shares = [(place + 1) / len(ordered) for place in range(len(ordered))]
    axis.step([ordered[0], *ordered], [0, *shares], where="post", label=label, color=colour)


def _memory(results: Results, wanted: Mapping[str, str], path: str) -> str:
    measured = {title: results.details[key] for key, title in wanted.items() if key in results.details}
    if not measured:
        return ""
    figure, axes = pyplot.subplots(1, len(measured), figsize=(7 * len(measured), 4.2), squeeze=False)
    for axis, (title, by_who) in zip(axes.flat, measured.items(), strict=True):
        _stacks(axis, {who: by_who[who.name] for who in CONTESTANTS if who.name in by_who})
        axis.set(title=title, ylabel="MiB per pod")
        axis.grid(axis="y", alpha=0.3)
        axis.legend(fontsize=8)
    return _save(figure, path)


def _stacks(axis: Any, measured: Mapping[Contestant, Mapping[str, Mapping[str, float]]]) -> None:
    """A group of bars per number of pods, a bar per contestant, a piece per role."""
    counts = sorted({count for by_count in measured.values() for count in by_count}, key=int)
    width = 0.8 / len(measured)
    labelled: set[str] = set()
    for place, (who, by_count) in enumerate(measured.items()):
        for at, count in enumerate(counts):
            bottom = 0.0
            x = at + (place - (len(measured) - 1) / 2) * width
            for role, mib in by_count.get(count, {}).items():
                label = f"{who.title}: {role}"
                look = {"color": _ROLE_COLOURS[role], "hatch": _HATCHES.get(who.name)}
                axis.bar(x, mib, width * 0.9, bottom=bottom, label=None if label in labelled else label, **look)
                labelled.add(label)
                bottom += mib
            axis.text(x, bottom, f"{bottom:.1f}", ha="center", va="bottom", fontsize=8)
    axis.set_xticks(range(len(counts)), [f"{count} pods" if count != "1" else "1 pod" for count in counts])


def _phases(results: Results, rows: Mapping[str, tuple[str, str, Contestant]], title: str, path: str) -> str:
    """``rows``: label to the name of the starts, and the metric and contestant that say how long they took as a
    whole."""
    rows = {label: row for label, row in rows.items() if results.phases.get(row[0])}
    if not rows:
        return ""
    figure, axis = pyplot.subplots(figsize=(9, 1.4 + 0.9 * len(rows)))
    colours = pyplot.get_cmap("tab20").colors
    names = list(dict.fromkeys(name for row in rows.values() for start in results.phases[row[0]] for name in start))
    for height, (starts, metric, who) in enumerate(rows.values()):
        medians = {name: statistics.median(s.get(name, 0.0) for s in results.phases[starts]) for name in names}
        total = results.median(metric, who) or sum(medians.values())
        medians["around the worker"] = max(total - sum(medians.values()), 0)
        left = 0.0
        for place, (name, taken) in enumerate(medians.items()):
            outside = name == "around the worker"
            colour = "lightgrey" if outside else colours[place % len(colours)]
            axis.barh(height, taken, left=left, color=colour, label=name if height == 0 else None)
            if taken > total * 0.04:
                axis.text(left + taken / 2, height, f"{taken:.1f}", ha="center", va="center", fontsize=8)
            left += taken
    axis.set_yticks(range(len(rows)), rows)
    axis.set(title=f"{title}: medians of its phases", xlabel="ms")
    axis.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.25))
    return _save(figure, path, tight=False)  # the legend is outside
