"""Who is killed, how often, and when it is back."""

from __future__ import annotations

import os
import random
import select
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from kuasar.api.gen.containerd.task.v3.task_pb2 import StateRequest
from scripts.stack import Stack
from tests.chaos.load import PodLoad
from tests.deadline import eventually
from tests.e2e.gateway import NAMESPACE, Gateway

_SECONDS = 60.0


@dataclass(frozen=True)
class Victim:
    """A process and how many times it dies in a full and in a quick run."""

    name: str
    full: int
    quick: int


UNDER_LOAD = (
    Victim("worker", 200, 24),
    Victim("gateway", 100, 12),
    Victim("keeper", 50, 6),
    Victim("zygote", 50, 6),
)
"""While containerd runs, which must notice nothing."""
WITH_CONTAINERD = (Victim("supervisord", 20, 2), Victim("containerd", 10, 2))
"""supervisord takes the stack's containerd along."""


class Killer:
    """Kills with -9 and measures, in seconds, how long nobody answered."""

    def __init__(self, stack: Stack, loads: Sequence[PodLoad], seed: str) -> None:
        self._stack = stack
        self._loads = loads
        self._random = random.Random(seed)
        self.seconds: dict[str, list[float]] = {}

    def kill(self, name: str) -> None:
        """One death; back when the process is replaced and has run for long enough to be restarted at once again."""
        if name == "worker":
            self._kill_worker()
        elif name == "supervisord":
            self._kill_supervisord()
        elif name == "containerd":
            self._kill_containerd()
        else:
            self._kill_program(name)

    def _kill_worker(self) -> None:
        load = self._random.choice(self._loads)
        program = f"sandbox:{load.pod.id}"
        self._settled(program)
        with Gateway(self._stack.layout.gateway_socket) as gateway:
            request = StateRequest(id=load.idle.id)
            gateway.task.State(request, timeout=_SECONDS, metadata=NAMESPACE)  # connected, and everybody is there
            os.kill(self._stack.pid(program), signal.SIGKILL)
            began = time.monotonic()
            gateway.task.State(request, timeout=_SECONDS, metadata=NAMESPACE)
            self._took("worker", began)

    def _kill_program(self, name: str) -> None:
        self._settled(name)
        victim = self._stack.pid(name)
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        if name == "gateway":
            load = self._random.choice(self._loads)
            eventually(lambda: self._answers(load), "the gateway answers", timeout=_SECONDS)
        else:
            self._replaced(name, victim)
        self._took(name, began)
        self._settled(name)

    def _answers(self, load: PodLoad) -> bool:
        with Gateway(self._stack.layout.gateway_socket) as gateway:
            try:
                gateway.task.State(StateRequest(id=load.idle.id), timeout=_SECONDS, metadata=NAMESPACE)
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
                return False
        return True

    def _kill_supervisord(self) -> None:
        daemon = self._stack.supervisord_pid()
        victims = [os.pidfd_open(pid) for pid in (daemon, *map(self._stack.pid, ("gateway", "containerd")))]
        try:
            os.kill(daemon, signal.SIGKILL)
            for victim in victims:
                select.select([victim], [], [], _SECONDS)
        finally:
            for victim in victims:
                os.close(victim)
        began = time.monotonic()
        self._stack.start()
        self._took("supervisord", began)

    def _kill_containerd(self) -> None:
        self._settled("containerd")
        victim = self._stack.pid("containerd")
        os.kill(victim, self._random.choice((signal.SIGKILL, signal.SIGTERM)))
        began = time.monotonic()
        self._replaced("containerd", victim)
        self._stack.wait_ready()
        self._took("containerd", began)

    def _replaced(self, name: str, victim: int) -> None:
        eventually(lambda: self._stack.pid(name), name, until=lambda pid: pid not in (0, victim), timeout=_SECONDS)

    def _settled(self, program: str) -> None:
        name = program.rpartition(":")[2]

        def state() -> str:
            return next((info["statename"] for info in self._stack.programs() if info["name"] == name), "UNKNOWN")

        eventually(state, f"{program} runs", until=lambda seen: seen == "RUNNING", timeout=_SECONDS)

    def _took(self, name: str, began: float) -> None:
        self.seconds.setdefault(name, []).append(time.monotonic() - began)
