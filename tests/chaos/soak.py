"""``python -m tests.chaos.soak``: thousands of pods come and go, and what stays must not grow.

Ends with one line of figures; every sample and a picture are in .kuasar/soak.json and .kuasar/soak.png. Exit codes: 0
flat; 1 something grew, was replaced, wrong or left over, each in words; 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from kuasar.cli.cri import CriClient
from scripts.layout import CHECKOUT
from scripts.stack import Stack
from tests.chaos.progress import progress
from tests.chaos.residents import Residents
from tests.deadline import Patience, eventually
from tests.e2e import leftovers
from tests.e2e.conftest import CALL_SECONDS
from tests.e2e.engines import ENGINES
from tests.e2e.harness import Node
from tests.e2e.stack import start_stack

_SAMPLES = 100
_PATIENCE = 4.0


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--pods", type=int, default=2000, help="how many come and go (default: 2000)")
    parser.add_argument("--at-once", type=int, default=4, help="how many of them at the same time (default: 4)")
    parser.add_argument("--engines", default="kuasar-runc,kuasar-wasmtime", help="their handlers, with commas")
    parser.add_argument("--save", default=f"{CHECKOUT}/.kuasar/soak", metavar="NAME", help="NAME.json and NAME.png")
    options = parser.parse_args(argv)
    unknown = [name for name in options.engines.split(",") if name not in ENGINES]
    if unknown:
        parser.error(f"--engines: unknown {', '.join(unknown)}")
    if options.pods < 10 or options.at_once < 1:
        parser.error("--pods: must be at least 10" if options.pods < 10 else "--at-once: must be at least 1")
    Patience.factor = _PATIENCE
    with start_stack() as stack:
        began = time.monotonic()
        residents, wrong = _run(stack, options)
        seconds = time.monotonic() - began
    wrong += residents.wrong()
    figures = {"pods": options.pods, "seconds": seconds, "wrong": wrong, "residents": residents.plain()}
    with open(f"{options.save}.json", "w", encoding="utf-8") as file:
        json.dump(figures, file, indent=1)
    residents.draw(f"{options.save}.png")
    for words in wrong:
        print(f"wrong: {words}")
    sizes = ", ".join(f"{name} {series.words()}" for name, series in residents.series.items())
    print(f"soak: {options.pods} pods in {seconds:.0f} s; {sizes}; {len(wrong)} wrong")
    return 1 if wrong else 0


def _run(stack: Stack, options: argparse.Namespace) -> tuple[Residents, list[str]]:
    """Samples and what went wrong, in words."""
    engines = [ENGINES[name] for name in options.engines.split(",")]
    residents = Residents(stack)
    wrong: list[str] = []
    every = max(1, options.pods // _SAMPLES)
    with (
        CriClient(stack.layout.containerd_socket, timeout=CALL_SECONDS * _PATIENCE) as cri,
        tempfile.TemporaryDirectory(prefix="kuasar-soak-") as directory,
        progress("pods", options.pods) as advance,
        ThreadPoolExecutor(options.at_once) as pool,
    ):

        def live(number: int) -> str:
            """One pod from its creation to its removal; what was wrong with it."""
            node = Node(stack, cri, engines[number % len(engines)], f"{directory}/{number}")
            try:
                code = number % 125
                seen = node.pod(f"soak-{number}").run(node.engine.programs.exit(code)).wait(60).exit_code
                return "" if seen == code else f"pod {number}: exit code {seen} instead of {code}"
            finally:
                node.close()

        before = leftovers.present(stack)
        residents.sample(0)
        for gone, run in enumerate(as_completed([pool.submit(live, number) for number in range(options.pods)]), 1):
            try:
                words = run.result()
            except Exception as error:  # the others go on, and tell more
                words = f"a pod failed: {error!r:.500}"
            if words:
                wrong.append(words)
            if gone % every == 0:
                residents.sample(gone)
            advance("pods")
        try:
            eventually(lambda: leftovers.present(stack) - before, "nothing is left", until=lambda left: not left)
        except AssertionError as error:
            wrong.append(str(error))
    return residents, wrong


if __name__ == "__main__":
    sys.exit(main())
