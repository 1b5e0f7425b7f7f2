"""Memory of idle pods: proportional set sizes of every process that exists because of a pod, by its role.

Pages that workers and agents share with the zygote are divided among all who map them, so the figure falls with the
number of pods until the shared part no longer matters; that is why there are several counts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from tests.bench.contestants import SHIM, Contestant
from tests.bench.node import Node, Pod
from tests.bench.plan import Plan
from tests.bench.pods import Tick
from tests.bench.processes import Process, below, processes
from tests.bench.results import Results
from tests.bench.smaps import pss_mib

_STARTERS = 4
_SHARED = {
    "gateway": r"kuasar\.gateway\.main",
    "zygote": r"kuasar\.supervisor\.zygote|kuasar-zygote",
    "supervisord": r"supervisor\.supervisord|bin/supervisord",
    "containerd": r"bin/containerd ",
}


def idle_pods(
    node: Node, results: Results, plan: Plan, who: Sequence[Contestant], with_container: bool, tick: Tick
) -> None:
    """Pods, each with an idle container or with none, are added up to each count and measured there."""
    key = "memory.container" if with_container else "memory"

    def start(one: Contestant) -> Pod:
        pod, _ = node.run_pod(one)
        if with_container:
            container, _ = node.create(pod, one.programs.idle)
            node.start(container)
        return pod

    for one in who:
        with growing(node, one, plan.pod_counts, start) as stages:
            for pods in stages:
                roles = _measure(node, pods)
                results.add(f"{key}.{len(pods)}", one, *(sum(of.values()) for of in roles))
                results.keep_memory(key, one, len(pods), mean(roles))
                tick()
            if not with_container:
                results.details.setdefault("shared", {})[one.name] = _shared(node.under_test.mark)


@contextmanager
def growing(
    node: Node, one: Contestant, counts: Sequence[int], start: Callable[[Contestant], Pod]
) -> Iterator[Iterator[list[Pod]]]:
    """Yields the pods there are each time that their number has grown to one of ``counts``; removes them all."""
    pods: list[Pod] = []
    with ThreadPoolExecutor(_STARTERS) as callers:

        def stages() -> Iterator[list[Pod]]:
            for count in counts:
                pods.extend(callers.map(start, [one] * (count - len(pods))))
                yield pods

        yield stages()
        list(callers.map(node.remove, pods))


def mean(pods: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Role to MiB of a pod in the middle of all."""
    sums: dict[str, float] = defaultdict(float)
    for roles in pods:
        for role, mib in roles.items():
            sums[role] += mib
    return {role: round(mib / len(pods), 3) for role, mib in sums.items()}


def _measure(node: Node, pods: Sequence[Pod]) -> list[dict[str, float]]:
    """Role to MiB of each pod. Raises RuntimeError for a pod that lacks one of its two processes."""
    known = processes()
    return [_roles(pod, node.pause_pid(pod), known) for pod in pods]


def _roles(pod: Pod, stands: int, known: Mapping[int, Process]) -> dict[str, float]:
    serving, standing = ("shim", "pause") if pod.who is SHIM else ("worker", "agent")
    serve = {process.pid for process in known.values() if pod.id in process.command} - {stands}
    if not stands or not serve:
        raise RuntimeError(f"pod {pod.id}: pid {stands} stands for it, {serve} serve it: both are needed")
    # the shim adopts what runs in the pod; of ours the agent does
    inside = set().union(*(below(pid, known) for pid in (stands, *serve))) - serve - {stands}
    roles = {serving: sum(map(pss_mib, serve)), standing: pss_mib(stands)}
    return {**roles, "container": sum(map(pss_mib, inside))} if inside else roles


def _shared(mark: str) -> dict[str, float]:
    """MiB of what there is once, however many pods there are; found by ``mark`` in their command lines."""
    found: dict[str, float] = {}
    for process in processes().values():
        role = next((role for role, pattern in _SHARED.items() if re.search(pattern, process.command)), None)
        if mark and mark in process.command and role:
            found[role] = round(pss_mib(process.pid), 1)
    return found
