"""What metrics and traces cost a request: the same gateway with and without them, one round of each in turn.

``python -m tests.bench.telemetry [rounds]`` prints a table. A request is ``Controller.Status``: gRPC, gateway, bus,
worker and back. Wall time depends on what else the machine does, so there is also the processor time of gateway and
worker for each call, which hardly does.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

from rich.console import Console
from rich.table import Table

from kuasar.api.gen.containerd.sandbox.v1 import controller_pb2 as pb
from kuasar.api.gen.kuasar.admin.v1 import admin_pb2
from tests.integration.gateway.node import METADATA, SECONDS, Node, running
from tests.scraping import scrape
from tests.standins.collector import Collector, collecting

ROUNDS = 20
CALLS = 500
"""Of one round."""
_ROUNDS_PER_SCRAPE = 10
"""Every five seconds or so, which is more often than usual."""
_SANDBOX = "s0"
_METRICS = '[metrics]\nlisten = "unix:DIR/s/metrics.sock"\n'
_TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclass
class Contestant:
    """A node, and what has been measured on it."""

    name: str
    node: Node
    pids: tuple[int, int] = (0, 0)
    """Gateway and worker."""
    seconds: list[float] = field(default_factory=list)
    """Median of a call, by round."""
    processor: list[float] = field(default_factory=list)
    """Seconds for each call, by round."""

    def start(self) -> None:
        """One sandbox, and everything warm."""
        self.node.admin.ListSandboxes(admin_pb2.ListSandboxesRequest(), timeout=SECONDS, wait_for_ready=True)
        self.node.run(_SANDBOX, "bench")
        answer = self.node.admin.GetSandbox(admin_pb2.GetSandboxRequest(id=_SANDBOX), timeout=SECONDS)
        gateway = next(int(line.split()[3].rstrip(",")) for line in self._status() if line.startswith("gateway "))
        self.pids = (gateway, answer.sandbox.worker_pid)
        self._calls()

    def round(self) -> None:
        """Measure once more."""
        before = self._processor()
        if self.node.config.metrics.listen and len(self.seconds) % _ROUNDS_PER_SCRAPE == 0:
            scrape(self.node.config.metrics.listen)
        self.seconds.append(median(self._calls()))
        self.processor.append((self._processor() - before) / CALLS)

    def _status(self) -> list[str]:
        return self.node.ctl("status").splitlines()

    def _calls(self) -> list[float]:
        request = pb.ControllerStatusRequest(sandbox_id=_SANDBOX)
        took = []
        for _ in range(CALLS):
            began = time.perf_counter()
            self.node.controller.Status(request, metadata=METADATA, timeout=SECONDS)
            took.append(time.perf_counter() - began)
        return took

    def _processor(self) -> float:
        return sum(map(_processor_seconds, self.pids))


def _processor_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK


def measure(rounds: int = ROUNDS) -> list[Contestant]:
    """All contestants, measured; the first has neither metrics nor traces."""
    with ExitStack() as stack:
        collector = stack.enter_context(collecting())
        settings = {
            "neither": "",
            "metrics": _METRICS,
            "metrics, 1 % traced": _METRICS + _tracing(collector, 0.01),
            "metrics, all traced": _METRICS + _tracing(collector, 1.0),
        }
        contestants = [Contestant(name, stack.enter_context(running(text))) for name, text in settings.items()]
        for contestant in contestants:
            contestant.start()
        for _ in range(rounds):
            for contestant in contestants:
                contestant.round()
        return contestants


def _tracing(collector: Collector, ratio: float) -> str:
    return f'[tracing]\nendpoint = "{collector.endpoint}"\nsample_ratio = {ratio}\n'


def main() -> None:
    """The command."""
    contestants = measure(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
    table = Table("", "median call", "beside neither", "processor time", "beside neither", title="Controller.Status")
    base = contestants[0]
    for one in contestants:
        longer = median(here / there for here, there in zip(one.seconds, base.seconds, strict=True)) - 1
        more = sum(one.processor) / sum(base.processor) - 1
        table.add_row(
            one.name,
            f"{median(one.seconds) * 1e3:.3f} ms",
            f"{longer:+.1%}",
            f"{sum(one.processor) / len(one.processor) * 1e6:.0f} µs",
            f"{more:+.1%}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
