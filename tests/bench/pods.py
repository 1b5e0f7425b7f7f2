"""Starts and stops of empty pods, one at a time and ten at once; with and without CNI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.bench.contestants import OURS, Contestant
from tests.bench.metrics import AT_ONCE
from tests.bench.node import Node, Pod
from tests.bench.plan import Plan, rounds
from tests.bench.results import Results

Tick = Callable[[], None]
"""Called once per round, for the progress shown."""


def turns(who: Sequence[Contestant], number: int) -> Sequence[Contestant]:
    """The order of a round: A B, then B A, so that neither always has the other's rubbish to wait for."""
    return tuple(who) if number % 2 == 0 else tuple(reversed(who))


def one_at_a_time(
    node: Node, results: Results, plan: Plan, who: Sequence[Contestant], host_network: bool, tick: Tick
) -> None:
    """RunPodSandbox, StopPodSandbox, RemovePodSandbox."""
    network = "host" if host_network else "cni"
    for number, counts in rounds(plan.pods, plan.pod_seconds, plan.warmup):
        for one in turns(who, number):
            pod, run = node.run_pod(one, host_network=host_network)
            phases = node.phases(pod) if one is OURS else {}
            stop, remove = node.stop(pod), node.remove(pod)
            if not counts:
                continue
            results.add(f"run_pod.{network}", one, run)
            results.add(f"stop_pod.{network}", one, stop)
            if host_network:
                results.add("remove_pod.host", one, remove)
            if phases:
                results.phases[network].append(phases)
        tick()


def many_at_once(
    node: Node, results: Results, plan: Plan, who: Sequence[Contestant], host_network: bool, tick: Tick
) -> None:
    """RunPodSandbox of ``AT_ONCE`` pods by as many callers; each caller's time is a sample."""
    network = "host" if host_network else "cni"

    def run(one: Contestant) -> tuple[Pod, float]:
        return node.run_pod(one, host_network=host_network)

    with ThreadPoolExecutor(AT_ONCE) as callers:
        for number, counts in rounds(plan.batches, plan.batch_seconds, warmup=1):
            for one in turns(who, number):
                pods = list(callers.map(run, [one] * AT_ONCE))
                list(callers.map(node.remove, [pod for pod, _ in pods]))
                if counts:
                    results.add(f"run_pod.{network}.many", one, *(taken for _, taken in pods))
            tick()
