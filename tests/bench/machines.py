"""Pods in virtual machines: clones of a template against machines that boot, in the pods' network (CNI).

A machine has no access to the host's network, so there is no other way. A boot takes as long as many clones, so each
round has several clones to one boot.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from kuasar.cli.cri import CriError
from tests.bench.containers import hello
from tests.bench.contestants import COLD, MACHINE, Contestant
from tests.bench.memory import growing, mean
from tests.bench.metrics import AT_ONCE
from tests.bench.node import Node, Pod
from tests.bench.plan import Plan, rounds
from tests.bench.pods import Tick, turns
from tests.bench.processes import Process, processes
from tests.bench.results import Results
from tests.bench.smaps import memory_files_mib, memory_of

_STARTS = {MACHINE: "clone of template ", COLD: "boot: template = false"}


def one_at_a_time(node: Node, results: Results, plan: Plan, who: Sequence[Contestant], tick: Tick) -> None:
    """RunPodSandbox, its way to the first output, StopPodSandbox."""
    for number, counts in rounds(plan.boots, plan.boot_seconds, warmup=1 if MACHINE in who else 0):
        for one in turns(who, number):
            if not counts and one is COLD:
                continue  # a boot is the same the first time
            for _ in range(plan.clones_per_boot if counts and one is MACHINE else 1):
                _one(node, results, one, counts)
        tick()


def _one(node: Node, results: Results, one: Contestant, counts: bool) -> None:
    asked = time.time()
    pod, run = node.run_pod(one, host_network=False)
    phases = _require_start(node, pod)
    seen = hello(node, pod)
    stop = node.stop(pod)
    node.remove(pod)
    if counts:
        results.add("machine.run", one, run)
        results.add("machine.first_output", one, (seen - asked) * 1000)
        results.add("machine.stop", one, stop)
        results.phases[one.name].append(phases)


def _require_start(node: Node, pod: Pod) -> dict[str, float]:
    """The phases of a start. Raises RuntimeError when it was of another kind than the one that is measured."""
    start = node.info(pod).get("start", "")
    if not start.startswith(_STARTS[pod.who]):
        raise RuntimeError(f"pod {pod.id} of {pod.who.handler} says {start!r} of its start, not {_STARTS[pod.who]!r}")
    return node.phases(pod)


def many_at_once(node: Node, results: Results, plan: Plan, who: Sequence[Contestant], tick: Tick) -> None:
    """RunPodSandbox of ``AT_ONCE`` machines by as many callers; each caller's time is a sample. A slow or busy host
    cannot boot so many before their deadlines: how many came up is said in the facts. Clones must all come up."""
    batches = {MACHINE: plan.clone_batches, COLD: plan.boot_batches}
    for number in range(max(batches.values())):
        for one in (one for one in who if number < batches[one]):
            started = _start_many(node, one)
            for pod, _ in started:
                _require_start(node, pod)
            if len(started) < AT_ONCE:
                results.facts[f"machines of {one.handler}, {AT_ONCE} at once"] = f"{len(started)} came up in time"
            node.remove_all()
            results.add("machine.run.many", one, *(taken for _, taken in started))
            tick()


def _start_many(node: Node, one: Contestant) -> list[tuple[Pod, float]]:
    """Those of ``AT_ONCE`` pods that came up. Raises CriError for a clone that did not."""
    with ThreadPoolExecutor(AT_ONCE) as callers:
        calls = [callers.submit(node.run_pod, one, host_network=False) for _ in range(AT_ONCE)]
    errors = [call.exception() for call in calls]
    for error in errors:
        if error is not None and not (one is COLD and isinstance(error, CriError)):
            raise error
    return [call.result() for call, error in zip(calls, errors, strict=True) if error is None]


def memory(node: Node, results: Results, plan: Plan, who: Sequence[Contestant], tick: Tick) -> None:
    """Idle machines without containers. Private is what nobody else has: of QEMU all but its memory file, and of that
    all that is allocated, even what QEMU has not mapped or virtiofsd has mapped, too."""
    for one in who:
        with growing(node, one, plan.machine_counts, lambda one: node.run_pod(one, host_network=False)[0]) as stages:
            for pods in stages:
                known = processes()
                for pod in pods:
                    _require_start(node, pod)
                machines = [node.pause_pid(pod) for pod in pods]
                roles = [_roles(pod, qemu, known) for pod, qemu in zip(pods, machines, strict=True)]
                own = [sum(mib for role, mib in of.items() if role in _OWN) for of in roles]
                results.add(f"machine.private.{len(pods)}", one, *own)
                results.add(f"machine.mapped.{len(pods)}", one, *(memory_of(qemu).private for qemu in machines))
                results.add(f"machine.memory.{len(pods)}", one, *(sum(of.values()) for of in roles))
                results.keep_memory("machine", one, len(pods), mean(roles))
                tick()


_OWN = ("QEMU, anonymous", "QEMU, files", "memory file")


def _roles(pod: Pod, qemu: int, known: Mapping[int, Process]) -> dict[str, float]:
    """Role to MiB of one machine. Raises RuntimeError for one that lacks a process."""
    others = [process for process in known.values() if pod.id in process.command and process.pid != qemu]
    servers = [process.pid for process in others if "virtiofsd" in process.command]
    workers = [process.pid for process in others if "virtiofsd" not in process.command]
    if not qemu or not servers or not workers:
        raise RuntimeError(f"pod {pod.id}: QEMU is {qemu}, virtiofsd {servers}, the worker {workers}: all are needed")
    machine = memory_of(qemu)
    return {
        "memory file": memory_files_mib(qemu),
        "QEMU, anonymous": machine.private_anonymous,
        "QEMU, files": machine.private_of_files,
        "virtiofsd": sum(memory_of(pid).pss for pid in servers),
        "worker": sum(memory_of(pid).pss for pid in workers),
    }
