"""Memory of idle pods: proportional set sizes of every process that exists because of a pod, by its role.

Pages that workers and agents share with the zygote are divided among all who map them, so the figure falls with the
number of pods until the shared part no longer matters; that is why there are several counts.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from tests.bench.metrics import Who
from tests.bench.node import Node, Pod
from tests.bench.plan import Plan
from tests.bench.pods import Tick
from tests.bench.results import Results

_STARTERS = 4
_SHARED = {
    "gateway": r"kuasar\.gateway\.main",
    "zygote": r"kuasar\.supervisor\.zygote|kuasar-zygote",
    "supervisord": r"supervisor\.supervisord|bin/supervisord",
    "containerd": r"bin/containerd ",
}
_ROLES = {"ours": ("worker", "agent"), "wasm": ("worker", "agent"), "shim": ("shim", "pause")}


def idle_pods(node: Node, results: Results, plan: Plan, who: Sequence[Who], tick: Tick) -> None:
    """Pods are added up to each count and measured there."""
    for one in who:
        pods: list[Pod] = []
        with ThreadPoolExecutor(_STARTERS) as callers:
            for count in plan.pod_counts:
                pods += [pod for pod, _ in callers.map(node.run_pod, [one] * (count - len(pods)))]
                roles = _measure(node, pods)
                results.add(f"memory.{count}", one, *(sum(values) for values in zip(*roles.values(), strict=True)))
                results.details.setdefault("memory", {}).setdefault(one, {})[str(count)] = {
                    role: round(sum(values) / count, 3) for role, values in roles.items()
                }
                tick()
            results.details.setdefault("shared", {})[one] = _shared(node.under_test.mark)
            list(callers.map(node.remove, pods))


def _measure(node: Node, pods: Sequence[Pod]) -> dict[str, list[float]]:
    """Role to MiB of each pod. Raises RuntimeError for a pod that lacks one of its two processes."""
    commands = dict(_commands())
    roles: dict[str, list[float]] = defaultdict(list)
    for pod in pods:
        first, second = _ROLES[pod.who]
        named = [pid for pid, command in commands.items() if pod.id in command]
        stands = node.pause_pid(pod)
        others = [pid for pid in named if pid != stands]
        if not stands or not others:
            raise RuntimeError(f"pod {pod.id}: pid {stands} stands for it, {others} serve it: both are needed")
        roles[first].append(sum(pss_mib(pid) for pid in others))
        roles[second].append(pss_mib(stands))
    return roles


def _commands() -> Iterator[tuple[int, str]]:
    """Every process of the node with its command line, ourselves excepted."""
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
            yield int(name), file.read().replace(b"\0", b" ").decode(errors="replace")


def _shared(mark: str) -> dict[str, float]:
    """MiB of what there is once, however many pods there are; found by ``mark`` in their command lines."""
    found: dict[str, float] = {}
    for pid, command in _commands():
        role = next((role for role, pattern in _SHARED.items() if re.search(pattern, command)), None)
        if mark and mark in command and role:
            found[role] = round(pss_mib(pid), 1)
    return found


def pss_mib(pid: int) -> float:
    """Proportional set size of a process."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        found = re.search(r"^Pss:\s+(\d+) kB", file.read(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/{pid}/smaps_rollup has no Pss: it has ended, or is a kernel thread")
    return int(found[1]) / 1024
