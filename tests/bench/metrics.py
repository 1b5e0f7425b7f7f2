"""What is measured, in which unit, who is compared with whom, and what the project has promised of it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.contestants import COLD, MACHINE, OURS, SHIM, WASM, WASMEDGE, Contestant

POD_COUNTS = (1, 10, 50)
MACHINE_COUNTS = (1, 10)
AT_ONCE = 10


@dataclass(frozen=True)
class Metric:
    """One line of a table. Samples of it are in ``unit``; of those the median counts."""

    key: str
    title: str
    unit: str = "ms"
    more_is_better: bool = False


@dataclass(frozen=True)
class Target:
    """A promise: ``who`` has at most (at least, where more is better) ``ratio`` times what ``base`` has, or at most
    ``limit``."""

    metric: str
    who: Contestant
    ratio: float | None = None
    base: Contestant | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Comparison:
    """One table: the contestants that are looked at, and the one they are held against. A metric may be in several."""

    title: str
    who: tuple[Contestant, ...]
    base: Contestant
    metrics: tuple[str, ...]

    @property
    def columns(self) -> tuple[Contestant, ...]:
        """Everyone in it."""
        return (*self.who, self.base)


def _pods(count: int) -> str:
    return f"{count} pod{'s' * (count > 1)}"


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
    *(Metric(f"memory.{n}", f"Pss per idle pod, {_pods(n)}", "MiB") for n in POD_COUNTS),
    Metric("stdout.bulk", "stdout into the log file, 64 KiB writes", "MB/s", more_is_better=True),
    Metric("stdout.lines", "stdout into the log file, 80-byte lines", "MB/s", more_is_better=True),
    Metric("worker_ready", "worker added to ready"),
    Metric("bus", "bus request and reply, 50 workers in turn", "µs"),
    Metric("bus.one", "bus request and reply, one of 50 workers again and again", "µs"),
    Metric("module", "what 512 KiB of cached code add to CreateContainer up to the module's end"),
    *(Metric(f"memory.container.{n}", f"Pss per pod with an idle container, {_pods(n)}", "MiB") for n in POD_COUNTS),
    Metric("machine.run", "RunPodSandbox, CNI"),
    Metric("machine.run.many", f"RunPodSandbox, CNI, {AT_ONCE} at once"),
    Metric("machine.first_output", "RunPodSandbox to the container's first output, CNI"),
    Metric("machine.stop", "StopPodSandbox with a container that has ended, CNI"),
    *(Metric(f"machine.private.{n}", f"private memory of an idle machine, {_pods(n)}", "MiB") for n in MACHINE_COUNTS),
    *(Metric(f"machine.mapped.{n}", f"– of that mapped by QEMU alone, {_pods(n)}", "MiB") for n in MACHINE_COUNTS),
    *(
        Metric(f"machine.memory.{n}", f"the same with virtiofsd and worker (Pss), {_pods(n)}", "MiB")
        for n in MACHINE_COUNTS
    ),
)

_KEYS = tuple(metric.key for metric in METRICS)

COMPARISONS: tuple[Comparison, ...] = (
    Comparison("The runc engine and containerd's shim", (OURS,), SHIM, _KEYS[: _KEYS.index("module")]),
    Comparison(
        "WebAssembly and containerd's shim",
        (WASM, WASMEDGE),
        SHIM,
        ("first_output", "module", *(key for key in _KEYS if key.startswith("memory.container."))),
    ),
    Comparison("Virtual machines", (MACHINE,), COLD, tuple(key for key in _KEYS if key.startswith("machine."))),
)

TARGETS: tuple[Target, ...] = (
    Target("run_pod.host", OURS, 0.4, SHIM),
    Target("run_pod.cni", OURS, 0.7, SHIM),
    Target("create_start", OURS, 1.0, SHIM),
    Target("exec", OURS, 1.0, SHIM),
    Target("stop_pod.container", OURS, 0.6, SHIM),
    Target("stop_pod.host", OURS, 0.6, SHIM),
    Target("memory.50", OURS, limit=6.0),
    Target("stdout.bulk", OURS, 1.0, SHIM),
    Target("stdout.lines", OURS, 1.0, SHIM),
    Target("worker_ready", OURS, limit=15.0),
    Target("bus", OURS, limit=250.0),
    Target("first_output", WASM, 0.5, SHIM),
    Target("first_output", WASMEDGE, 0.5, SHIM),
    Target("module", WASM, limit=15.0),
    Target("module", WASMEDGE, limit=15.0),
    Target("machine.run", MACHINE, 1 / 6, COLD),
    Target("machine.run", MACHINE, limit=400.0),
    *(Target(f"machine.private.{n}", MACHINE, limit=64.0) for n in MACHINE_COUNTS),
)
"""Those of SPECIFICATION.md; mostly ratios, because absolute times are those of the machine."""


def metric_of(key: str) -> Metric:
    """The metric of this key."""
    return next(metric for metric in METRICS if metric.key == key)
