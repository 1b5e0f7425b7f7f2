"""Containers: create and start, exec, the stop of a pod that has one, the way to the first output, and the flood."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from tests.bench.metrics import Who
from tests.bench.node import Node, first_line, last_line
from tests.bench.plan import Plan, rounds
from tests.bench.pods import Tick, turns
from tests.bench.results import Results

_IDLE = ("sleep", "600")
_LINE = "x" * 79


def lives(node: Node, results: Results, plan: Plan, who: Sequence[Who], tick: Tick) -> None:
    """Pods with one idle container in the host's network: create, start, exec, stop of the pod under it."""
    for number, counts in rounds(plan.lives, plan.life_seconds, plan.warmup):
        for one in turns(who, number):
            pod, _ = node.run_pod(one)
            container, create = node.create(pod, _IDLE)
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


def first_output(node: Node, results: Results, plan: Plan, who: Sequence[Who], tick: Tick) -> None:
    """From the call of RunPodSandbox to the time that containerd wrote before the first line of the log."""
    for number, counts in rounds(plan.outputs, plan.output_seconds, plan.warmup):
        for one in turns(who, number):
            asked = time.time()
            pod, _ = node.run_pod(one)
            container, _ = node.create(pod, ("hello",) if one == "wasm" else ("echo", "hello"), name="hello")
            node.start(container)
            node.wait_exit(container)
            seen = first_line(node.log_path(pod, "hello")).seconds
            node.remove(pod)
            if counts:
                results.add("first_output", one, (seen - asked) * 1000)
        tick()


def floods(node: Node, results: Results, plan: Plan, who: Sequence[Who], tick: Tick) -> None:
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


def _flood(node: Node, one: Who, command: Sequence[str], size: int) -> float:
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
