"""`make bench`: measures our handlers and containerd's shim in one run and writes bench-results/<time>/.

Exit code 0 when everything ran, whatever the numbers say: the report judges them, the exit code does not. 1 when a
section failed to run, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from tests.bench import containers, machines, memory, pods, report, supervision
from tests.bench.contestants import COLD, CONTESTANTS, MACHINE, OURS, SHIM, WASM, WASMEDGE, Contestant
from tests.bench.node import Node
from tests.bench.plan import FULL, QUICK, Plan
from tests.bench.results import Results
from tests.bench.under_test import existing, own_stack

_ROOT = Path(__file__).parents[2]
_WIDTH = 150


@dataclass(frozen=True)
class Section:
    """One part of the run. ``work`` is given what to call after each round."""

    name: str
    title: str
    total: int
    work: Callable[[pods.Tick], None]


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    arguments = _arguments(argv)
    plan = QUICK if arguments.quick else FULL
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    results = Results()
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        under_test = stack.enter_context(
            existing(arguments.containerd, arguments.image, arguments.wasm_image)
            if arguments.containerd
            else own_stack(console)
        )
        node = stack.enter_context(Node(under_test))
        wanted = {who: str(getattr(arguments, who.name)) for who in CONTESTANTS}
        there = {handler.name for handler in node.cri.runtime_status().runtime_handlers}
        node.handlers = {who: handler for who, handler in wanted.items() if handler in there}
        missing = [f"{who.name} ({name})" for who, name in wanted.items() if name and who not in node.handlers]
        results.facts = _facts(node, plan) | ({"left out, no such handler": ", ".join(missing)} if missing else {})
        _run(_sections(node, results, plan), arguments.only, results, console)
    results.facts["took"] = f"{time.monotonic() - started:.0f} s"
    results.facts["load average at the end"] = _load()
    for who in missing:
        console.print(f"left out, containerd has no such handler: {who}", style="yellow", highlight=False)
    directory = arguments.output or str(_ROOT / "bench-results" / time.strftime("%Y%m%d-%H%M%S"))
    report.write(results, directory)
    report.show(results, console)
    console.print(f"written: {directory}", highlight=False)
    return 1 if results.problems else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Measure ours against containerd's shim."
    )
    quick = os.environ.get("QUICK", "") not in ("", "0")
    parser.add_argument("--quick", action="store_true", default=quick, help="fewer rounds, two minutes (or QUICK=1)")
    parser.add_argument(
        "--only", metavar="NAME", action="append", default=[], help="only this section; may be repeated"
    )
    for who in CONTESTANTS:
        says = f"handler of: {who.title} (default: {who.handler}; '' leaves it out)"
        parser.add_argument(f"--{who.name}", metavar="HANDLER", default=who.handler, help=says)
    parser.add_argument("--output", metavar="DIR", help="where to write (default: bench-results/<time>)")
    parser.add_argument("--containerd", metavar="SOCKET", help="a running containerd instead of a stack of our own")
    parser.add_argument("--image", metavar="REF", default="", help="with --containerd: image with busybox's commands")
    parser.add_argument(
        "--wasm-image", metavar="REF", default="", help="with --containerd: what tests.bench.modules writes"
    )
    return parser.parse_args(argv)


def _sections(node: Node, results: Results, plan: Plan) -> list[Section]:
    def there(*who: Contestant) -> tuple[Contestant, ...]:
        return tuple(one for one in who if one in node.handlers)

    pair, wasm, virtual = there(OURS, SHIM), there(WASM, WASMEDGE), there(MACHINE, COLD)
    everyone, linked = there(OURS, SHIM, WASM, WASMEDGE), there(SHIM, WASM, WASMEDGE)
    turns = plan.warmup
    sections = [
        Section(
            "pods",
            "empty pods, host network",
            plan.pods + turns,
            lambda tick: pods.one_at_a_time(node, results, plan, pair, True, tick),
        ),
        Section(
            "pods-cni",
            "empty pods, CNI",
            plan.pods + turns,
            lambda tick: pods.one_at_a_time(node, results, plan, pair, False, tick),
        ),
        Section(
            "many",
            "ten pods at once, host network",
            plan.batches + 1,
            lambda tick: pods.many_at_once(node, results, plan, pair, True, tick),
        ),
        Section(
            "many-cni",
            "ten pods at once, CNI",
            plan.batches + 1,
            lambda tick: pods.many_at_once(node, results, plan, pair, False, tick),
        ),
        Section(
            "containers",
            "container, exec, stop",
            plan.lives + turns,
            lambda tick: containers.lives(node, results, plan, pair, tick),
        ),
        Section(
            "first-output",
            "start to first output",
            plan.outputs + turns,
            lambda tick: containers.first_output(node, results, plan, everyone, tick),
        ),
        Section(
            "stdout",
            "stdout into the log",
            plan.floods,
            lambda tick: containers.floods(node, results, plan, pair, tick),
        ),
        Section(
            "memory",
            "memory of idle pods",
            len(plan.pod_counts) * len(pair),
            lambda tick: memory.idle_pods(node, results, plan, pair, False, tick),
        ),
        Section(
            "memory-containers",
            "memory of pods with an idle container",
            len(plan.pod_counts) * len(linked),
            lambda tick: memory.idle_pods(node, results, plan, linked, True, tick),
        ),
        Section(
            "modules",
            "cached modules",
            plan.modules + turns,
            lambda tick: containers.modules(node, results, plan, wasm, tick),
        ),
        Section("workers", "workers and bus", 2, lambda tick: supervision.workers(results, plan, tick)),
    ]
    return sections + _machine_sections(node, results, plan, virtual)


def _machine_sections(node: Node, results: Results, plan: Plan, who: tuple[Contestant, ...]) -> list[Section]:
    clones = tuple(one for one in who if one is MACHINE)
    return [
        Section(
            "machines",
            "machines: clone against boot",
            plan.boots + 1,
            lambda tick: machines.one_at_a_time(node, results, plan, who, tick),
        ),
        Section(
            "machines-many",
            "ten machines at once",
            plan.clone_batches * (MACHINE in who) + plan.boot_batches * (COLD in who),
            lambda tick: machines.many_at_once(node, results, plan, who, tick),
        ),
        Section(
            "machines-memory",
            "memory of idle machines",
            len(plan.machine_counts) * len(clones),
            lambda tick: machines.memory(node, results, plan, clones, tick),
        ),
    ]


def _run(sections: Sequence[Section], only: Sequence[str], results: Results, console: Console) -> None:
    """Every section, whatever becomes of the others."""
    known = [section.name for section in sections]
    unknown = [name for name in only if name not in known]
    if unknown:
        console.print(f"no section {', '.join(unknown)} (there are: {', '.join(known)})", style="red")
        raise SystemExit(2)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        for section in sections:
            if only and section.name not in only:
                continue
            task = progress.add_task(section.title, total=section.total)
            began = time.monotonic()
            try:
                section.work(lambda task=task: progress.advance(task))  # type: ignore[misc]  # a default binds it
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                results.problems.append(
                    f"{section.title}: {type(error).__name__}: {error} ({where.name}:{where.lineno})"
                )
                progress.update(task, description=f"{section.title}: failed", refresh=True)
            finally:
                results.details.setdefault("seconds", {})[section.name] = round(time.monotonic() - began, 1)
                progress.stop_task(task)


def _facts(node: Node, plan: Plan) -> dict[str, str]:
    version = node.cri.version()
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "plan": plan.name,
        "handlers": ", ".join(f"{who.name}={name}" for who, name in node.handlers.items()),
        "containerd": f"{version.runtime_name} {version.runtime_version}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": str(os.cpu_count()),
        "load average at the start": _load(),
    }


def _load() -> str:
    return " ".join(f"{load:.2f}" for load in os.getloadavg())


if __name__ == "__main__":
    sys.exit(main())
