"""Pods run and removed through CRI, and how long each step took: what ``kuasarctl bench`` does.

Every pod carries a label with the process that made it. Removing all pods of that label, :meth:`Measuring.clear`, is
the whole clean-up, also after an interruption, and also of a run that was killed.
"""

from __future__ import annotations

import math
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kuasar.cli.cri import CriClient, CriError, container_config, pod_config
from kuasar.cli.ctl.node import Node

LABEL = "kuasar.io/bench"
NAMESPACE = "kuasar-bench"
STEPS = ("run pod", "create container", "start container", "stop pod", "remove pod")
"""As CRI's callers see them."""
_CLEAR_SECONDS = 120.0


class Samples:
    """Milliseconds by step."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = defaultdict(list)
        self._lock = threading.Lock()

    def add(self, step: str, milliseconds: float) -> None:
        """One more."""
        with self._lock:
            self._values[step].append(milliseconds)

    def rows(self) -> Iterator[tuple[str, list[float]]]:
        """In the order of a pod's life; the phases of the start after the step that they are in."""
        first, *later = STEPS
        phases = [step for step in self._values if step not in STEPS]
        for step in (first, *phases, *later):
            if step in self._values:
                yield step, sorted(self._values[step])


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest sample that is not below ``share`` of all; ``ordered`` must not be empty."""
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


def handlers(runtimes: Mapping[str, Any], sandboxers: Mapping[str, Any]) -> dict[str, str]:
    """A runtime of containerd's for each engine that one leads to, from the configuration that its CRI tells and our
    own. The first by name, where there are several."""
    found: dict[str, str] = {}
    for name, entry in sorted(runtimes.items()):
        sandboxer = sandboxers.get(entry.get("sandboxer", "") if isinstance(entry, dict) else "")
        if sandboxer is not None:
            found.setdefault(sandboxer.engine, name)
    return found


class Measuring:
    """One run on one containerd."""

    def __init__(self, node: Node, cri: CriClient, image: str, command: Sequence[str], host_network: bool) -> None:
        self._node = node
        self._cri = cri
        self._image = image
        self._command = list(command)
        self._host_network = host_network
        self._run = str(os.getpid())
        self._stopping = threading.Event()
        self.failures: list[str] = []

    def stop(self) -> None:
        """Begin nothing new."""
        self._stopping.set()

    def engine(self, handler: str, pods: int, at_once: int, tick: Callable[[], None]) -> Samples:
        """``pods`` pods of a runtime handler, ``at_once`` of them at a time. What fails is in :attr:`failures`."""
        samples = Samples()

        def one(number: int) -> None:
            if self._stopping.is_set():
                return
            try:
                self._one(handler, number, samples)
            except CriError as exc:
                self.failures.append(f"{handler}: {exc}")
            tick()

        with tempfile.TemporaryDirectory(prefix="kuasar-bench-") as logs, ThreadPoolExecutor(at_once) as pool:
            self._logs = logs
            try:
                list(pool.map(one, range(pods)))
            except BaseException:
                self.stop()  # leaving the pool waits for those that have begun
                raise
        return samples

    def _one(self, handler: str, number: int, samples: Samples) -> None:
        config = pod_config(
            f"bench-{handler}-{number}",
            namespace=NAMESPACE,
            labels={LABEL: self._run},
            log_directory=self._logs if self._image else "",
            host_network=self._host_network,
        )
        pod = _timed(samples, "run pod", lambda: self._cri.run_pod(config, handler))
        try:
            recorded = self._node.recorded(pod)
            phases: dict[str, float] = defaultdict(float)  # some come twice
            for name, milliseconds in recorded.phases if recorded is not None else ():
                phases[name] += milliseconds
            for name, milliseconds in phases.items():
                samples.add(f"  {name}", milliseconds)
            if self._image:
                described = container_config("main", self._image, self._command, [], log_path=f"{number}.log")
                create = self._cri.create_container
                container = _timed(samples, "create container", lambda: create(pod, described, config))
                _timed(samples, "start container", lambda: self._cri.start(container))
        finally:
            _timed(samples, "stop pod", lambda: self._cri.stop_pod(pod))
            _timed(samples, "remove pod", lambda: self._cri.remove_pod(pod))

    def clear(self) -> list[str]:
        """Remove every pod of this run and of runs whose process is gone; gives what could not be removed, and why."""
        deadline = time.monotonic() + _CLEAR_SECONDS
        while True:
            left = [pod for pod in self._cri.list_pods() if self._is_left(dict(pod.labels).get(LABEL, ""))]
            wrong = [why for pod in left if (why := self._remove(pod.id))]
            if not left or (wrong and time.monotonic() > deadline):
                return wrong

    def _is_left(self, run: str) -> bool:
        return bool(run) and (run == self._run or not os.path.exists(f"/proc/{run}"))

    def _remove(self, pod: str) -> str:
        try:
            self._cri.stop_pod(pod)
            self._cri.remove_pod(pod)
        except CriError as exc:
            return f"{pod}: {exc}"
        return ""


def _timed(samples: Samples, step: str, call: Callable[[], Any]) -> Any:
    started = time.perf_counter()
    result = call()
    samples.add(step, (time.perf_counter() - started) * 1000)
    return result
