"""Containers: create and start, exec, stop of a pod that has one, the way to the first output, the flood, modules."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from tests.bench.contestants import LARGE_MODULE, SMALL_MODULE, Contestant
from tests.bench.node import Node, Pod, first_line, last_line
from tests.bench.plan import Plan, rounds
from tests.bench.pods import Tick, turns
from tests.bench.results import Results

_LINE = "x" * 79


def lives(node: Node, results: Results, plan: Plan, who: Sequence[Contestant], tick: Tick) -> None:
    """Pods with one idle container in the host's network: create, start, exec, stop of the pod under it."""
    for number, counts in rounds(plan.lives, plan.life_seconds, plan.warmup):
        for one in turns(who, number):
            pod, _ = node.run_pod(one)
            container, create = node.create(pod, one.programs.idle)
            start = node.start(container)
            execs = [_exec(node, container) for _ in range(plan.execs)]
            stop = node.stop(pod)
            node.remove(pod)
            if not counts:
                continue
            results.add("create", one, create)
            results.add("start", one, start)
            results.add("create_start", one, create + start)
            results.add("exec", one, *execs)
            results.add("stop_pod.container", one, stop)
        tick()


def _exec(node: Node, container: str) -> float:
    started = time.perf_counter()
    done = node.cri.exec_sync(container, ("true",))
    taken = (time.perf_counter() - started) * 1000
    if done.exit_code:
        raise RuntimeError(f"exec of true ended with {done.exit_code}: {done.stderr.decode(errors='replace')}")
    return taken


def first_output(node: Node, results: Results, plan: Plan, who: Sequence[Contestant], tick: Tick) -> None:
    """From the call of RunPodSandbox to the time that containerd wrote before the first line of the log."""
    for number, counts in rounds(plan.outputs, plan.output_seconds, plan.warmup):
        for one in turns(who, number):
            asked = time.time()
            pod, _ = node.run_pod(one)
            seen = hello(node, pod)
            node.remove(pod)
            if counts:
                results.add("first_output", one, (seen - asked) * 1000)
        tick()


def hello(node: Node, pod: Pod) -> float:
    """Runs a container that writes a line and ends; the time that containerd wrote before the line."""
    container, _ = node.create(pod, pod.who.programs.hello, name="hello")
    node.start(container)
    node.wait_exit(container)
    return first_line(node.log_path(pod, "hello")).seconds


def modules(node: Node, results: Results, plan: Plan, who: Sequence[Contestant], tick: Tick) -> None:
    """A module with much code against one with next to none, one after the other in the same pod, both compiled and in
    the cache: from the call of CreateContainer to the end. The difference is a sample."""
    for number, counts in rounds(plan.modules, plan.module_seconds, plan.warmup):
        for one in turns(who, number):
            pod, _ = node.run_pod(one)
            first, second = (SMALL_MODULE, LARGE_MODULE)[:: 1 if number % 2 else -1]
            taken = {command: _whole_life(node, pod, command) for command in (first, second)}
            node.remove(pod)
            if counts:
                results.add("module", one, taken[LARGE_MODULE] - taken[SMALL_MODULE])
        tick()


def _whole_life(node: Node, pod: Pod, command: Sequence[str]) -> float:
    """Of a container that ends by itself; milliseconds."""
    asked = time.time()
    container, _ = node.create(pod, command)
    node.start(container)
    return (node.wait_end(container) - asked) * 1000


def floods(node: Node, results: Results, plan: Plan, who: Sequence[Contestant], tick: Tick) -> None:
    """Bytes per second from a container's stdout to its log file, by the times in the log itself."""
    bulk = plan.bulk_megabytes * 1_000_000
    lines = plan.line_megabytes * 1_000_000
    writers = {
        "stdout.bulk": (("dd", "if=/dev/zero", "bs=65536", f"count={bulk // 65536}"), bulk // 65536 * 65536),
        "stdout.lines": (("sh", "-c", f"yes {_LINE} | head -c {lines}"), lines),
    }
    for number, _ in rounds(plan.floods, plan.flood_seconds):
        for key, (command, size) in writers.items():
            for one in turns(who, number):
                results.add(key, one, _flood(node, one, command, size))
        tick()


def _flood(node: Node, one: Contestant, command: Sequence[str], size: int) -> float:
    """One writer in a pod of its own; MB/s."""
    pod, _ = node.run_pod(one)
    container, _ = node.create(pod, command, name="flood")
    node.start(container)
    code = node.wait_exit(container)
    path = node.log_path(pod, "flood")
    if code or os.path.getsize(path) < size:
        raise RuntimeError(f"the writer ended with {code}, its log has {os.path.getsize(path)} of {size} bytes")
    seconds = last_line(path).seconds - first_line(path).seconds
    node.remove(pod)
    return size / 1_000_000 / seconds
