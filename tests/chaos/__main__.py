"""``python -m tests.chaos``: pods of several engines under load, and everything of ours dies, again and again.

Ends with one line of figures (also in .kuasar/chaos.json). Exit codes: 0 nobody noticed; 1 something was lost, doubled,
wrong or left over, each in words; 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence

from kuasar.cli.cri import CriClient
from scripts.layout import CHECKOUT
from scripts.stack import Stack
from tests.chaos.figures import Figures
from tests.chaos.load import PodLoad, turning
from tests.chaos.progress import progress
from tests.chaos.victims import UNDER_LOAD, WITH_CONTAINERD, Killer, Victim
from tests.deadline import Patience, eventually
from tests.e2e import leftovers
from tests.e2e.conftest import CALL_SECONDS
from tests.e2e.engines import ENGINES
from tests.e2e.harness import Node
from tests.e2e.stack import start_stack

FIGURES = f"{CHECKOUT}/.kuasar/chaos.json"
_PATIENCE = 4.0
"""Everything is slower while everything dies."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="an eighth of the kills: under five minutes")
    parser.add_argument("--pods", type=int, default=10, help="how many pods, of the engines in turn (default: 10)")
    parser.add_argument("--engines", default="kuasar-runc,kuasar-wasmtime", help="their handlers, with commas")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="to repeat a run's choices")
    parser.add_argument("--save", default=FIGURES, metavar="FILE", help="the figures as JSON (default: %(default)s)")
    options = parser.parse_args(argv)
    unknown = [name for name in options.engines.split(",") if name not in ENGINES]
    if unknown or options.pods < 1:
        parser.error(f"--engines: unknown {', '.join(unknown)}" if unknown else "--pods: must be at least 1")
    Patience.factor = _PATIENCE
    print(f"seed {options.seed}", flush=True)
    with start_stack() as stack:
        figures = _run(stack, options)
    figures.save(options.save)
    for words in figures.wrong:
        print(f"wrong: {words}")
    print(figures.line())
    return 1 if figures.wrong else 0


def _run(stack: Stack, options: argparse.Namespace) -> Figures:
    began = time.monotonic()
    engines = [ENGINES[name] for name in options.engines.split(",")]
    counts = {victim: victim.quick if options.quick else victim.full for victim in (*UNDER_LOAD, *WITH_CONTAINERD)}
    with (
        CriClient(stack.layout.containerd_socket, timeout=CALL_SECONDS * _PATIENCE) as cri,
        tempfile.TemporaryDirectory(prefix="kuasar-chaos-") as directory,
        progress("kills", sum(counts.values())) as advance,
    ):
        before = leftovers.present(stack)
        nodes = [Node(stack, cri, engine, os.path.join(directory, engine.handler)) for engine in engines]
        try:
            pods = [nodes[number % len(nodes)].pod(f"chaos-{number}") for number in range(options.pods)]
            loads = [PodLoad(pod, f"{options.seed}/{number}") for number, pod in enumerate(pods)]
            killer = Killer(stack, loads, f"{options.seed}/killer")
            with turning(loads):
                for victim in _order(UNDER_LOAD, counts, options.seed):
                    killer.kill(victim)
                    advance(f"killed {victim}")
            _check(loads, whole=True)
            for load in loads:
                load.write_anew()
            for victim in _order(WITH_CONTAINERD, counts, options.seed):
                killer.kill(victim)
                for load in loads:
                    load.check_lasting()
                    load.turn()
                advance(f"killed {victim}")
            _check(loads, whole=False)  # what containerd had read and not written when it was killed is lost
        finally:
            for node in nodes:
                node.close()
        wrong = [words for load in loads for words in load.wrong]
        try:
            eventually(lambda: leftovers.present(stack) - before, "nothing is left", until=lambda left: not left)
        except AssertionError as error:
            wrong.append(str(error))
    done = sum((load.done for load in loads), Counter[str]())
    return Figures(options.seed, options.pods, time.monotonic() - began, dict(done), killer.seconds, wrong)


def _order(victims: Sequence[Victim], counts: dict[Victim, int], seed: int) -> list[str]:
    order = [victim.name for victim in victims for _ in range(counts[victim])]
    random.Random(f"{seed}/order").shuffle(order)
    return order


def _check(loads: Sequence[PodLoad], whole: bool) -> None:
    for load in loads:
        load.check_lasting()
        load.check_lines(whole)


if __name__ == "__main__":
    sys.exit(main())
