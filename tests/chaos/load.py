"""What runs while things die: pods whose containers write, are exec'ed into and end. Each step is checked when it is
done, and what was wrong is kept in words."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count

import grpc

from kuasar.api.gen.cri.v1.common_pb2 import LinuxContainerResources
from kuasar.cli.cri import CriError
from tests.chaos.lines import END_CODE, STOP_FILE, WRITES, Lines
from tests.deadline import eventually
from tests.e2e.engines import EXEC, OWN_KERNEL, RELAYED, SHELL
from tests.e2e.harness import Container, Pod

_PATIENCE_SECONDS = 60.0
_EXEC_SECONDS = 30
_LONGEST_LIFE_MS = 1500
_PERIOD_US = 100_000
_SLOWNESS = 8
"""How many times slower a processor of an emulated machine is, about."""


class Away:
    """Whether containerd is being killed: calls to it may break off then."""

    def __init__(self) -> None:
        self._deaths = 0
        self._is_away = False

    @contextmanager
    def dying(self) -> Iterator[None]:
        """From before the kill until it answers again."""
        self._deaths += 1
        self._is_away = True
        try:
            yield
        finally:
            self._is_away = False

    def since(self) -> Callable[[], bool]:
        """Tells later whether it was away at any time from now on."""
        deaths, was_away = self._deaths, self._is_away
        return lambda: was_away or self._deaths != deaths


class PodLoad:
    """One pod with what runs in it. Only its own thread calls :meth:`turn` and :meth:`exec_turn`.

    The writer has ``writer_cpu`` of a processor: it writes as fast as it can until that is used up, ten times a second.
    """

    def __init__(self, pod: Pod, seed: str, writer_cpu: float) -> None:
        self.pod = pod
        self.wrong: list[str] = []
        self.done: Counter[str] = Counter()
        self.ends: dict[str, int] = {}
        """Containers that have ended, and how."""
        self.commands: dict[str, Counter[int]] = {}
        """Per container the codes of what was executed in it while containerd lived."""
        self.idle = pod.run_idle("idle")
        self.can_exec = pod.engine.can(EXEC)
        self.is_machine = pod.engine.can(OWN_KERNEL)
        self.is_relayed = pod.engine.can(RELAYED)
        quota = min(1.0, writer_cpu * (_SLOWNESS if self.is_machine else 1)) * _PERIOD_US
        self._quota = LinuxContainerResources(cpu_period=_PERIOD_US, cpu_quota=int(quota))
        self.writer: Container | None = None
        self.lines: Lines | None = None
        self._write()
        self._pids = {container.id: container.pid for container in self._lasting()}
        self._random = random.Random(seed)
        self._numbers = count()

    def turn(self) -> None:
        """An exec with a code of its own, or a container that ends with one, where the engine has execs."""
        if self.can_exec and self._random.random() < 0.8:
            self._exec()
        else:
            self._short_container()

    def exec_turn(self, away: Away) -> None:
        """A command, which may break off where containerd is away."""
        was_away = away.since()
        try:
            self._exec()
        except CriError:
            if not was_away():
                raise
            self.done["broken off"] += 1
            threading.Event().wait(0.05)  # it refuses at once, until it is back

    def check_lasting(self) -> None:
        """The containers that are to live are the ones that were started at first."""
        for container in self._lasting():
            if not container.running():
                self.wrong.append(f"{self._name(container)} does not run any more: {container.status()}")
            elif container.pid != self._pids[container.id]:
                self.wrong.append(f"{self._name(container)} is another: {self._pids[container.id]} -> {container.pid}")

    def end_writer(self) -> None:
        """Have it come to its end: no line may be missing, doubled, torn or out of order."""
        if self.writer is None or self.lines is None:
            return
        told = self.writer.exec("touch", STOP_FILE, timeout=_EXEC_SECONDS)
        self._executed(self.writer, 0)
        if told.exit_code:
            self.wrong.append(f"{self._name(self.writer)} cannot be told to end: {told}")
        code = self.writer.wait(_PATIENCE_SECONDS).exit_code
        self._ended(self.writer, END_CODE, code)
        lines = self.lines

        def ended() -> bool:
            lines.read()
            return lines.ended

        with suppress(AssertionError):  # what is missing is told by the lines
            eventually(ended, "the last line")
        self.done["lines"] += lines.count
        self.wrong += [f"{self._name(self.writer)}: {words}" for words in lines.wrong()]

    def write_anew(self) -> None:
        """Another writer in place of the one that was ended."""
        if self.writer is not None:
            self.writer.remove()
            self._write()
            self._pids = {container.id: container.pid for container in self._lasting()}

    def close(self) -> None:
        """Harmless to repeat. The pod is its node's."""
        if self.lines is not None:
            self.lines.close()

    def containerd_dies(self) -> None:
        """About to: what it has read of a stream and not written is lost."""
        if self.lines is not None:
            self.lines.allow_gap()

    def _write(self) -> None:
        if self.pod.engine.can(SHELL):
            self.close()
            self.writer = self.pod.run(WRITES, "writer", resources=self._quota)
            self.lines = Lines(self.writer.log_path)

    def _lasting(self) -> list[Container]:
        return [container for container in (self.idle, self.writer) if container is not None]

    def _exec(self) -> None:
        code = self._random.randrange(256)
        result = self.idle.exec("sh", "-c", f"echo {code}; exit {code}", timeout=_EXEC_SECONDS)
        self.done["execs"] += 1
        self._executed(self.idle, code)
        if (result.exit_code, result.stdout) != (code, f"{code}\n".encode()):
            self.wrong.append(f"{self._name(self.idle)}: exec {code} gave {result.exit_code}, {result.stdout!r}")

    def _executed(self, container: Container, code: int) -> None:
        self.commands.setdefault(container.id, Counter())[code] += 1

    def _short_container(self) -> None:
        code = self._random.randrange(1, 126)
        container = eventually(lambda: self._made(code), "a container can be made", timeout=_PATIENCE_SECONDS)
        assert container is not None
        seen = container.start().wait(_PATIENCE_SECONDS).exit_code
        self.done["containers"] += 1
        self._ended(container, code, seen)
        container.remove()

    def _ended(self, container: Container, code: int, seen: int) -> None:
        self.ends[container.id] = code
        if seen != code:
            self.wrong.append(f"{self._name(container)} ended with {seen} instead of {code}")

    def _made(self, code: int) -> Container | None:
        """None while the Sandbox API, which containerd asks first, is away: that alone may be, and is repeated."""
        command: Sequence[str] = self.pod.engine.programs.exit(code)
        if self.pod.engine.can(SHELL):
            command = ["sh", "-c", f"usleep {self._random.randrange(_LONGEST_LIFE_MS) * 1000}; exit {code}"]
        try:
            return self.pod.create(command, f"short-{next(self._numbers)}")
        except CriError as error:
            if error.code != grpc.StatusCode.UNAVAILABLE:
                raise
            self.done["repeated"] += 1
            return None

    def _name(self, container: Container) -> str:
        return f"{self.pod.engine.handler} {self.pod.config.metadata.name}/{container.name}"


@contextmanager
def turning(loads: Sequence[PodLoad], turn: Callable[[PodLoad], None]) -> Iterator[None]:
    """All loads take turns in threads of their own until the end, which waits for the last turn of each."""
    over = threading.Event()

    def run(load: PodLoad) -> None:
        while not over.is_set():
            turn(load)

    with ThreadPoolExecutor(max(1, len(loads))) as pool:
        runs: list[tuple[PodLoad, Future[None]]] = [(load, pool.submit(run, load)) for load in loads]
        try:
            yield
        finally:
            over.set()
    for load, ended in runs:
        if (error := ended.exception()) is not None:
            load.wrong.append(f"{load.pod.engine.handler}: a turn failed: {error!r:.1000}")
