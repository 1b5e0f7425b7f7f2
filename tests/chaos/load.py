"""What runs while things die: pods whose containers write, are exec'ed into and end. Each step is checked when it is
done, and what was wrong is kept in words."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count, pairwise

import grpc

from kuasar.cli.cri import CriError
from tests.deadline import eventually
from tests.e2e.engines import EXEC, SHELL
from tests.e2e.harness import Container, Pod

WRITES = ["sh", "-c", "i=0; while :; do echo $i; echo $i >&2; i=$((i+1)); usleep 4000; done"]
_PATIENCE_SECONDS = 60.0
_EXEC_SECONDS = 30
_STREAMS = ("stdout", "stderr")


class PodLoad:
    """One pod with what runs in it. Only its own thread calls :meth:`turn`."""

    def __init__(self, pod: Pod, seed: str) -> None:
        self.pod = pod
        self.wrong: list[str] = []
        self.done: Counter[str] = Counter()
        self.idle = pod.run_idle("idle")
        self.writer = pod.run(WRITES, "writer") if pod.engine.can(SHELL) else None
        self._pids = [container.pid for container in self._lasting()]
        self._random = random.Random(seed)
        self._numbers = count()

    def turn(self) -> None:
        """An exec with a code of its own, or a container that ends with one, where the engine has execs."""
        if self.pod.engine.can(EXEC) and self._random.random() < 0.8:
            self._exec()
        else:
            self._short_container()

    def check_lasting(self) -> None:
        """The containers that are to live are the ones that were started at first."""
        for container, pid in zip(self._lasting(), self._pids, strict=True):
            if not container.running():
                self.wrong.append(f"{self._name(container)} does not run any more: {container.status()}")
            elif container.pid != pid:
                self.wrong.append(f"{self._name(container)} was restarted: pid {pid} became {container.pid}")

    def check_lines(self, whole: bool) -> None:
        """End the writer: no line may be torn, doubled or out of order, and with ``whole`` none missing."""
        if self.writer is None:
            return
        self.writer.stop()
        if (code := self.writer.status().exit_code) != 137:
            self.wrong.append(f"{self._name(self.writer)} ended with {code} instead of 137")
        for stream in _STREAMS:
            lines = self.writer.log(stream).split()
            self.done["lines"] += len(lines)
            numbers = [int(line) if line.isdigit() else -1 for line in lines]
            at = first_wrong(numbers, whole)
            if at is not None:
                self.wrong.append(
                    f"{self._name(self.writer)}: {stream} is wrong near {lines[max(0, at - 1) : at + 2]!r}"
                )

    def write_anew(self) -> None:
        """Another writer in place of the one that was ended."""
        if self.writer is not None:
            self.writer.remove()
            self.writer = self.pod.run(WRITES, "writer")
            self._pids = [container.pid for container in self._lasting()]

    def _lasting(self) -> list[Container]:
        return [container for container in (self.idle, self.writer) if container is not None]

    def _exec(self) -> None:
        code = self._random.randrange(256)
        result = self.idle.exec("sh", "-c", f"echo {code}; exit {code}", timeout=_EXEC_SECONDS)
        self.done["execs"] += 1
        if (result.exit_code, result.stdout) != (code, f"{code}\n".encode()):
            self.wrong.append(f"{self._name(self.idle)}: exec {code} gave {result.exit_code}, {result.stdout!r}")

    def _short_container(self) -> None:
        code = self._random.randrange(1, 126)
        container = eventually(lambda: self._made(code), "a container can be made", timeout=_PATIENCE_SECONDS)
        assert container is not None
        seen = container.start().wait(_PATIENCE_SECONDS).exit_code
        self.done["containers"] += 1
        if seen != code:
            self.wrong.append(f"{self._name(container)} ended with {seen} instead of {code}")
        container.remove()

    def _made(self, code: int) -> Container | None:
        """None while the Sandbox API, which containerd asks first, is away: that alone may be, and is repeated."""
        try:
            return self.pod.create(self.pod.engine.programs.exit(code), f"short-{next(self._numbers)}")
        except CriError as error:
            if error.code != grpc.StatusCode.UNAVAILABLE:
                raise
            self.done["repeated"] += 1
            return None

    def _name(self, container: Container) -> str:
        return f"{self.pod.engine.handler} {self.pod.config.metadata.name}/{container.name}"


def first_wrong(numbers: list[int], whole: bool) -> int | None:
    """Where a sequence that must rise stops to, by ones from zero if it is to be ``whole``; None if it is right.
    Having none at all is wrong, too."""
    if not numbers or (whole and numbers[0] != 0):
        return 0
    pairs = enumerate(pairwise(numbers), 1)
    return next((at for at, (one, other) in pairs if (other != one + 1 if whole else other <= one)), None)


@contextmanager
def turning(loads: list[PodLoad]) -> Iterator[None]:
    """All loads take turns in threads of their own until the end, which waits for the last turn of each."""
    over = threading.Event()

    def run(load: PodLoad) -> None:
        while not over.is_set():
            load.turn()

    with ThreadPoolExecutor(len(loads)) as pool:
        runs: list[tuple[PodLoad, Future[None]]] = [(load, pool.submit(run, load)) for load in loads]
        try:
            yield
        finally:
            over.set()
    for load, ended in runs:
        if (error := ended.exception()) is not None:
            load.wrong.append(f"{load.pod.engine.handler}: a turn failed: {error!r:.1000}")
