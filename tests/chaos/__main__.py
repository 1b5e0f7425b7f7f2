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
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

from kuasar.cli.cri import CriClient
from scripts.layout import CHECKOUT, GUEST_IMAGE
from scripts.stack import Stack
from tests.chaos.exits import Exits
from tests.chaos.figures import Figures
from tests.chaos.held import held_command
from tests.chaos.lines import reading
from tests.chaos.load import Away, PodLoad, turning
from tests.chaos.progress import progress
from tests.chaos.victims import UNDER_LOAD, WITH_CONTAINERD, Killer, in_order, together
from tests.deadline import Patience, eventually
from tests.e2e import leftovers
from tests.e2e.conftest import CALL_SECONDS
from tests.e2e.engines import ENGINES, Engine
from tests.e2e.events import Events, subscribed
from tests.e2e.harness import Node
from tests.e2e.stack import start_stack

FIGURES = f"{CHECKOUT}/.kuasar/chaos.json"
_MACHINES = "kuasar-qemu"
_PATIENCE = 4.0
"""Everything is slower while everything dies."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="an eighth of the kills: under five minutes")
    parser.add_argument("--pods", type=int, default=10, help="how many pods, of the engines in turn (default: 10)")
    parser.add_argument("--engines", default="kuasar-runc,kuasar-wasmtime", help="their handlers, with commas")
    parser.add_argument(
        "--machines",
        type=int,
        default=2 if os.path.exists(f"{GUEST_IMAGE}/image.json") else 0,
        help=f"how many of the pods are of {_MACHINES} (default: %(default)s, or 0 without a guest image)",
    )
    parser.add_argument(
        "--writer-cpu", type=float, default=0.05, help="of a processor, per writer (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="to repeat a run's choices")
    parser.add_argument("--save", default=FIGURES, metavar="FILE", help="the figures as JSON (default: %(default)s)")
    options = parser.parse_args(argv)
    if unknown := [name for name in options.engines.split(",") if name not in ENGINES]:
        parser.error(f"--engines: unknown {', '.join(unknown)}")
    if not 0 <= options.machines < options.pods:
        parser.error("--pods: must be at least 1, and --machines fewer")
    if not 0.01 <= options.writer_cpu <= 1:
        parser.error("--writer-cpu: must be from 0.01 to 1")
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
    counts = {victim: victim.quick if options.quick else victim.full for victim in (*UNDER_LOAD, *WITH_CONTAINERD)}
    exits = Exits()
    with (
        CriClient(stack.layout.containerd_socket, timeout=CALL_SECONDS * _PATIENCE) as cri,
        tempfile.TemporaryDirectory(prefix="kuasar-chaos-") as directory,
        progress("kills", sum(counts.values())) as advance,
    ):
        before = leftovers.present(stack)
        nodes = {
            engine: Node(stack, cri, engine, os.path.join(directory, engine.handler)) for engine in ENGINES.values()
        }
        loads: list[PodLoad] = []
        killer = Killer(stack, loads, exits, f"{options.seed}/killer")
        wrong: list[str] = []
        try:
            with subscribed(stack) as events:
                for number, engine in enumerate(_engines(options)):
                    pod = nodes[engine].pod(f"chaos-{number}")
                    loads.append(PodLoad(pod, f"{options.seed}/{number}", options.writer_cpu))
                all_relayed = all(load.is_relayed for load in loads)
                deaths = together(in_order(UNDER_LOAD, counts, options.seed), options.seed, all_relayed)
                _under_load(killer, loads, deaths, advance)
                wrong += _all_reported(exits, events, loads)
            _with_containerd(killer, loads, in_order(WITH_CONTAINERD, counts, options.seed), directory, advance)
        except Exception as error:  # what was seen until then is told all the same
            traceback.print_exc()
            wrong.append(f"the run broke off: {error!r:.1000}")
        finally:
            for load in loads:
                load.close()
            for node in nodes.values():
                node.close()
        wrong += [words for load in loads for words in load.wrong]
        try:
            eventually(lambda: leftovers.present(stack) - before, "nothing is left", until=lambda left: not left)
        except AssertionError as error:
            wrong.append(str(error))
    done = sum((load.done for load in loads), Counter[str]())
    done["repeated exits"] = exits.repeated
    return Figures(
        options.seed, options.pods, time.monotonic() - began, dict(done), killer.deaths, killer.seconds, wrong
    )


def _engines(options: argparse.Namespace) -> list[Engine]:
    """One per pod: those of ``--engines`` in turn, and machines."""
    others = options.engines.split(",")
    names = [others[number % len(others)] for number in range(options.pods - options.machines)]
    return [ENGINES[name] for name in (*names, *[_MACHINES] * options.machines)]


def _under_load(
    killer: Killer, loads: Sequence[PodLoad], deaths: Sequence[Sequence[str]], advance: Callable[[str], None]
) -> None:
    """containerd lives, and must notice nothing."""
    killer.begin()
    with reading([load.lines for load in loads if load.lines]), turning(loads, PodLoad.turn):
        for names in deaths:
            killer.kill(names)
            for name in names:
                advance(f"killed {name}")
    for load in loads:
        load.check_lasting()
        load.end_writer()


def _with_containerd(
    killer: Killer, loads: Sequence[PodLoad], deaths: Sequence[str], directory: str, advance: Callable[[str], None]
) -> None:
    """containerd dies, alone or with supervisord: everything runs on, and is found again."""
    away = Away()
    for load in loads:
        load.write_anew()
    execing = [load for load in loads if load.can_exec]
    others = [load for load in loads if not load.can_exec]
    with (
        reading([load.lines for load in loads if load.lines]),
        turning(execing, lambda load: load.exec_turn(away)),
    ):
        for number, name in enumerate(deaths):
            with ExitStack() as held:
                for load in execing:
                    held.enter_context(held_command(load, directory, number))
                for load in loads:
                    load.containerd_dies()
                with away.dying():
                    killer.kill([name])
            for load in loads:
                load.check_lasting()
            for load in others:
                load.turn()
            advance(f"killed {name}")
    for load in loads:
        load.end_writer()


def _all_reported(exits: Exits, events: Events, loads: Sequence[PodLoad]) -> list[str]:
    """Every end was told to containerd, once. What is wrong, in words."""
    ends = {container: code for load in loads for container, code in load.ends.items()}
    commands = {container: codes for load in loads for container, codes in load.commands.items()}
    with suppress(AssertionError):  # told in words of its own
        eventually(lambda: exits.wrong(list(events.seen), ends, commands), "all exits", until=lambda found: not found)
    wrong = exits.wrong(list(events.seen), ends, commands)
    loads[0].done["exits"] += len(ends) + sum(codes.total() for codes in commands.values())
    return wrong


if __name__ == "__main__":
    sys.exit(main())
