"""What is measured, in which unit, and what the project has promised of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Who = Literal["ours", "shim", "wasm"]
"""ours: our runc engine; shim: containerd-shim-runc-v2 with the same runc; wasm: our Wasmtime engine."""

POD_COUNTS = (1, 10, 50)
AT_ONCE = 10


@dataclass(frozen=True)
class Metric:
    """One line of the table. Samples of it are in ``unit``; of those the median counts."""

    key: str
    title: str
    unit: str = "ms"
    more_is_better: bool = False


@dataclass(frozen=True)
class Target:
    """A promise: ours at most (at least, where more is better) ``ratio`` times the shim's, or at most ``limit``."""

    metric: str
    ratio: float | None = None
    limit: float | None = None


METRICS: tuple[Metric, ...] = (
    Metric("run_pod.host", "RunPodSandbox, host network"),
    Metric("run_pod.cni", "RunPodSandbox, CNI"),
    Metric("run_pod.host.many", f"RunPodSandbox, host network, {AT_ONCE} at once"),
    Metric("run_pod.cni.many", f"RunPodSandbox, CNI, {AT_ONCE} at once"),
    Metric("create_start", "CreateContainer + StartContainer"),
    Metric("create", "– CreateContainer"),
    Metric("start", "– StartContainer"),
    Metric("exec", "ExecSync of true"),
    Metric("stop_pod.container", "StopPodSandbox with one container, host network"),
    Metric("stop_pod.host", "StopPodSandbox, empty, host network"),
    Metric("stop_pod.cni", "StopPodSandbox, empty, CNI"),
    Metric("remove_pod.host", "RemovePodSandbox, host network"),
    Metric("first_output", "RunPodSandbox to the container's first output, host network"),
    *(Metric(f"memory.{n}", f"Pss per idle pod, {n} pod{'s' * (n > 1)}", "MiB") for n in POD_COUNTS),
    Metric("stdout.bulk", "stdout into the log file, 64 KiB writes", "MB/s", more_is_better=True),
    Metric("stdout.lines", "stdout into the log file, 80-byte lines", "MB/s", more_is_better=True),
    Metric("worker_ready", "worker added to ready"),
    Metric("bus", "bus request and reply, 50 workers in turn", "µs"),
    Metric("bus.one", "bus request and reply, one of 50 workers again and again", "µs"),
)

TARGETS: tuple[Target, ...] = (
    Target("run_pod.host", ratio=0.4),
    Target("run_pod.cni", ratio=0.7),
    Target("create_start", ratio=1.0),
    Target("exec", ratio=1.0),
    Target("stop_pod.container", ratio=0.6),
    Target("stop_pod.host", ratio=0.6),
    Target("memory.50", limit=6.0),
    Target("stdout.bulk", ratio=1.0),
    Target("stdout.lines", ratio=1.0),
    Target("worker_ready", limit=15.0),
    Target("bus", limit=250.0),
)
"""Those of SPECIFICATION.md; ratios, because absolute times are those of the machine."""


def metric_of(key: str) -> Metric:
    """The metric of this key."""
    return next(metric for metric in METRICS if metric.key == key)
