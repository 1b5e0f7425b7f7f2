"""The node under test, seen through CRI: pods and containers of those who are compared.

A `Node` owns every pod it has run until it is removed; closing it removes what is left, so that an interrupted run
leaves nothing on the node.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType

from kuasar.api.gen.cri.v1.container_pb2 import ContainerState, ContainerStatus
from kuasar.api.gen.cri.v1.pod_pb2 import PodSandboxConfig
from kuasar.cli.cri import CriClient, CriError, container_config, pod_config
from tests.bench.contestants import Contestant
from tests.bench.under_test import UnderTest

LABEL = "kuasar-bench"
_PATIENCE = 60.0
_REMOVERS = 10


@dataclass(frozen=True)
class Pod:
    """A running pod."""

    id: str
    who: Contestant
    config: PodSandboxConfig
    host_network: bool


@dataclass(frozen=True)
class Line:
    """A line of a container's log, with the time at which containerd had it."""

    seconds: float
    """Since the epoch."""
    text: bytes


class Node:
    """One containerd, the runtime handler behind each name, and the images."""

    def __init__(self, under_test: UnderTest) -> None:
        self.cri = CriClient(under_test.socket, timeout=_PATIENCE)
        self.handlers: dict[Contestant, str] = {}
        """Of those who take part."""
        self.under_test = under_test
        self._run = f"{os.getpid()}-{int(time.time())}"
        self._log_root = f"{under_test.log_root}/{LABEL}-{self._run}"
        self._numbers = itertools.count()
        self._pods: dict[str, Pod] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Node:
        os.makedirs(self._log_root, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(CriError):
            self.remove_all()
        self.cri.close()
        shutil.rmtree(self._log_root, ignore_errors=True)

    # -- pods ----------------------------------------------------------------------------------------------------------

    def prepare_pod(self, *, host_network: bool) -> PodSandboxConfig:
        """The configuration of the next pod, made before the clock runs."""
        name = f"bench-{next(self._numbers)}"
        return pod_config(
            name,
            namespace=LABEL,
            log_directory=f"{self._log_root}/{name}",
            host_network=host_network,
            labels={LABEL: self._run},
        )

    def run_pod(self, who: Contestant, *, host_network: bool = True) -> tuple[Pod, float]:
        """Runs a pod and gives it with the milliseconds that RunPodSandbox took."""
        config = self.prepare_pod(host_network=host_network)
        started = time.perf_counter()
        pod_id = self.cri.run_pod(config, self.handlers[who])
        taken = (time.perf_counter() - started) * 1000
        pod = Pod(pod_id, who, config, host_network)
        with self._lock:
            self._pods[pod_id] = pod
        return pod, taken

    def stop(self, pod: Pod) -> float:
        """Stops a pod; milliseconds."""
        started = time.perf_counter()
        self.cri.stop_pod(pod.id)
        return (time.perf_counter() - started) * 1000

    def remove(self, pod: Pod) -> float:
        """Removes a pod, stopping it first if need be; milliseconds."""
        started = time.perf_counter()
        self.cri.remove_pod(pod.id)
        taken = (time.perf_counter() - started) * 1000
        with self._lock:
            self._pods.pop(pod.id, None)
        shutil.rmtree(pod.config.log_directory, ignore_errors=True)
        return taken

    def remove_all(self) -> None:
        """Removes every pod of this run, those that did not come up, too. Raises CriError once all were tried."""
        there = [pod.id for pod in self.cri.list_pods(labels={LABEL: self._run})]
        with ThreadPoolExecutor(_REMOVERS) as callers:
            removals = [callers.submit(self.cri.remove_pod, pod) for pod in there]
        with self._lock:
            pods, self._pods = self._pods, {}
        for pod in pods.values():
            shutil.rmtree(pod.config.log_directory, ignore_errors=True)
        for removal in removals:
            removal.result()

    def info(self, pod: Pod) -> dict[str, str]:
        """What the runtime says of a pod when asked for everything: strings, and JSON where containerd adds its own."""
        return dict(self.cri.pod_status(pod.id, verbose=True).info)

    def phases(self, pod: Pod) -> dict[str, float]:
        """The phases of our start of this pod, in milliseconds."""
        return parse_phases(self.info(pod).get("phases", ""))

    def pause_pid(self, pod: Pod) -> int:
        """The process that stands for the pod: the pause container's, our agent's, QEMU; 0 if the runtime does not
        say."""
        info = self.info(pod)
        if info.get("pid", "").isdigit():
            return int(info["pid"])
        with suppress(ValueError, KeyError, TypeError):
            return int(json.loads(info["info"])["pid"])
        return 0

    # -- containers ----------------------------------------------------------------------------------------------------

    def create(self, pod: Pod, command: Sequence[str], *, name: str = "") -> tuple[str, float]:
        """Creates a container of the contestant's image and gives its id with the milliseconds that CreateContainer
        took."""
        config = container_config(
            name or f"c{next(self._numbers)}",
            self.under_test.wasm_image if pod.who.programs.wasm else self.under_test.image,
            command=command,
            host_network=pod.host_network,
        )
        started = time.perf_counter()
        container = self.cri.create_container(pod.id, config, pod.config)
        return container, (time.perf_counter() - started) * 1000

    def start(self, container: str) -> float:
        """Starts a container; milliseconds."""
        started = time.perf_counter()
        self.cri.start(container)
        return (time.perf_counter() - started) * 1000

    def log_path(self, pod: Pod, name: str) -> str:
        """Where containerd writes the output of the container ``name``."""
        return f"{pod.config.log_directory}/{name}_0.log"

    def wait_exit(self, container: str, seconds: float = _PATIENCE) -> int:
        """Until the container has ended; gives its exit code. Raises TimeoutError."""
        return int(self._ended(container, seconds).exit_code)

    def wait_end(self, container: str, seconds: float = _PATIENCE) -> float:
        """Until the container has ended; gives the time at which the runtime saw it, in seconds since the epoch.
        Raises TimeoutError, and RuntimeError for an exit code other than 0."""
        status = self._ended(container, seconds)
        if status.exit_code:
            raise RuntimeError(f"container {container} ended with {status.exit_code}: {status.message}")
        return float(status.finished_at) / 1e9

    def _ended(self, container: str, seconds: float) -> ContainerStatus:
        """CRI can only be asked, so this asks, and no clock depends on it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = self.cri.status(container).status
            if status.state == ContainerState.CONTAINER_EXITED:
                return status
            time.sleep(0.05)
        raise TimeoutError(f"container {container} did not end within {seconds:g} s")


def parse_phases(text: str) -> dict[str, float]:
    """``name=1.5ms`` with blanks between: name to milliseconds, in order. A name that comes again gets a number."""
    phases: dict[str, float] = {}
    seen: Counter[str] = Counter()
    for lap in text.split():
        name, _, taken = lap.rpartition("=")
        seen[name] += 1
        phases[name if seen[name] == 1 else f"{name} {seen[name]}"] = float(taken.removesuffix("ms"))
    return phases


def first_line(path: str) -> Line:
    """The first line of a log. Raises ValueError when it is empty."""
    with open(path, "rb") as log:
        return _parse(log.readline())


def last_line(path: str) -> Line:
    """The last line of a log, which is not read whole."""
    with open(path, "rb") as log:
        log.seek(max(log.seek(0, os.SEEK_END) - 65536, 0))
        return _parse(log.readlines()[-1])


def _parse(line: bytes) -> Line:
    """One line in CRI's form: RFC 3339 time with nanoseconds, stream, P or F, text."""
    stamp, _, rest = line.partition(b" ")
    whole, _, fraction = stamp.decode().rstrip("Z").partition(".")
    digits = fraction.partition("+")[0].partition("-")[0]
    offset = fraction[len(digits) :] or "+00:00"
    return Line(datetime.fromisoformat(whole + offset).timestamp() + float(f"0.{digits or 0}"), rest)
