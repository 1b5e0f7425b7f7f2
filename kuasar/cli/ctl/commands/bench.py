"""``bench``: how long pods take on this node."""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from kuasar.cli.ctl.engines import ask_engines
from kuasar.cli.ctl.failures import Absent, Away
from kuasar.cli.ctl.node import Node
from kuasar.cli.ctl.options import json_option, pass_node
from kuasar.cli.ctl.output import data, remark, table

if TYPE_CHECKING:
    from kuasar.cli.cri import CriClient
    from kuasar.cli.ctl.measuring import Measuring, Samples

MOST_PODS = 200
_INTERRUPTED = 130
_SECONDS = 120.0
_SHARES = ((0.5, "p50"), (0.95, "p95"), (1.0, "max"))


@click.command()
@click.option("-n", "--pods", type=click.IntRange(1, MOST_PODS), default=10, show_default=True, help="Of each engine.")
@click.option(
    "-c", "--at-once", type=click.IntRange(1, MOST_PODS), default=1, show_default=True, help="How many at a time."
)
@click.option("--engine", "wanted", multiple=True, metavar="NAME", help="Only this one; may be repeated.")
@click.option("--image", default="", help="Also run a container of this image, which containerd must have.")
@click.option(
    "--command",
    default="sleep 3600",
    show_default=True,
    help="What that container runs: words, divided by blanks.",
)
@click.option("--host-network", is_flag=True, help="Pods on the host's network: without CNI.")
@click.option("--containerd", metavar="SOCKET", help="containerd's gRPC socket.  [default: from the configuration]")
@json_option
@pass_node
def bench(
    node: Node,
    pods: int,
    at_once: int,
    wanted: tuple[str, ...],
    image: str,
    command: str,
    host_network: bool,
    containerd: str | None,
    as_json: bool,
) -> None:
    """Run pods of every engine that can be used here, through containerd as Kubernetes does, and say how long it took.

    Rows that are set in are the phases within `run pod`, as the sandbox's worker has measured them. All pods
    are removed again, also after Ctrl-C, and so are those of a bench that was killed. Exits with 1 if a pod failed or
    could not be removed, and with 130 when it was interrupted.
    """
    from kuasar.cli.cri import CriClient, CriError
    from kuasar.cli.ctl.measuring import Measuring

    address = containerd or node.config.containerd.events.removesuffix(".ttrpc")
    with CriClient(address, timeout=_SECONDS) as cri:
        try:
            plan = _plan(node, cri, wanted)
            measuring = Measuring(node, cri, image, command.split() if image else [], host_network)
            found, interrupted = _measure(measuring, plan, pods, at_once)
            with _undisturbed():
                wrong = measuring.clear()
        except CriError as exc:
            raise Away(f"containerd at {address}: {exc}") from exc
    _show(found, measuring.failures, as_json)
    for each in wrong:
        remark(f"could not be removed: {each}")
    if interrupted:
        sys.exit(_INTERRUPTED)
    if measuring.failures or wrong:
        sys.exit(1)


def _plan(node: Node, cri: CriClient, wanted: tuple[str, ...]) -> dict[str, str]:
    """Engine to runtime handler; what is left out is told."""
    from kuasar.cli.ctl.measuring import handlers

    settings: dict[str, Any] = json.loads(cri.runtime_status(verbose=True).info.get("config", "{}"))
    known = handlers((settings.get("containerd") or {}).get("runtimes") or {}, node.config.sandboxers)
    engines, note = ask_engines(node)
    remark(note)
    names = {each["name"] for each in engines}
    for name in wanted:
        if name not in names:
            raise Absent(f"there is no engine {name!r} (there are: {', '.join(sorted(names))})")
    plan = {}
    for each in engines:
        name = each["name"]
        if wanted and name not in wanted:
            continue
        if not each["usable"]:
            remark(f"{name} is left out: {each['reason']}")
        elif name not in known:
            remark(f"{name} is left out: no runtime of containerd's has a sandboxer with this engine")
        else:
            plan[name] = known[name]
    if not plan:
        raise Absent("there is no engine to measure")
    return plan


def _measure(measuring: Measuring, plan: dict[str, str], pods: int, at_once: int) -> tuple[dict[str, Samples], bool]:
    """Samples by engine, and whether it was interrupted."""
    found: dict[str, Samples] = {}
    try:
        with _progress(len(plan) * pods) as (tick, say):
            for engine, handler in plan.items():
                say(engine)
                found[engine] = measuring.engine(handler, pods, at_once, tick)
    except KeyboardInterrupt:
        remark("interrupted; the pods are being removed")
        return found, True
    return found, False


@contextmanager
def _progress(total: int) -> Iterator[tuple[Callable[[], None], Callable[[str], None]]]:
    """A bar on standard error, if that is a terminal: what to call after each step, and with what is being done."""
    if not sys.stderr.isatty():
        yield (lambda: None), (lambda _: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield (lambda: progress.advance(task)), (lambda text: progress.update(task, description=text))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C must not leave pods behind."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _show(found: dict[str, Samples], failures: list[str], as_json: bool) -> None:
    from kuasar.cli.ctl.measuring import quantile

    measured = [
        {
            "engine": engine,
            "step": step.strip(),
            "phase": step.startswith(" "),
            "count": len(values),
            **{name: round(quantile(values, share), 2) for share, name in _SHARES},
        }
        for engine, samples in found.items()
        for step, values in samples.rows()
    ]
    if as_json:
        data({"milliseconds": measured, "failures": failures})
        return
    rows = (
        (
            each["engine"],
            f"  {each['step']}" if each["phase"] else each["step"],
            each["count"],
            *(f"{each[name]:.1f}" for _, name in _SHARES),
        )
        for each in measured
    )
    table(("ENGINE", "STEP", "PODS", "P50 ms", "P95 ms", "MAX ms"), rows)
    for why, count in Counter(failures).items():
        remark(f"{count} failed: {why}")
