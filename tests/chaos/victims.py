"""Who is killed, how often, and when it is back."""

from __future__ import annotations

import os
import random
import select
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import grpc

from kuasar.api.gen.containerd.types.task_pb2 import Status
from kuasar.core.errors import Unavailable
from kuasar.supervisor.keeper_client import Keeper
from scripts.stack import Stack
from tests.chaos.exits import Exits
from tests.chaos.load import PodLoad
from tests.deadline import eventually
from tests.e2e.gateway import Gateway
from tests.e2e.task_connection import TaskConnection

_SECONDS = 60.0
_LONGEST_PAUSE = 0.3
"""Between two deaths of which the second hits while the first is being made good."""
_TOGETHER_SHARE = 0.4
"""Of the deaths under load that hit while somebody else is being replaced."""
_NOT_BOTH = frozenset({"gateway", "keeper"})
"""What one lets go the other holds."""
_NOT_BOTH_RELAYED = frozenset({"worker", "keeper"})
"""The same of a worker that relays streams."""

Back = Callable[[], None]
"""Waits until a victim is replaced and answers."""


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
WITH_CONTAINERD = (Victim("supervisord", 20, 2), Victim("containerd", 10, 2), Victim("everything", 5, 1))
"""supervisord takes the stack's containerd along; everything is all processes of ours, the keeper too."""


def in_order(victims: Sequence[Victim], counts: dict[Victim, int], seed: int) -> list[str]:
    """All deaths in a random order."""
    order = [victim.name for victim in victims for _ in range(counts[victim])]
    random.Random(f"{seed}/order").shuffle(order)
    return order


def together(order: Sequence[str], seed: int, all_relayed: bool) -> list[tuple[str, ...]]:
    """The same, with some of them in pairs. ``all_relayed``: there is no worker that may die with the keeper."""
    never = {_NOT_BOTH, _NOT_BOTH_RELAYED} if all_relayed else {_NOT_BOTH}
    choose = random.Random(f"{seed}/together")
    found: list[tuple[str, ...]] = []
    for name in order:
        last = found[-1] if found else ()
        if (
            len(last) == 1
            and frozenset((*last, name)) not in never
            and {*last, name} != {name}
            and choose.random() < _TOGETHER_SHARE
        ):
            found[-1] = (*last, name)
        else:
            found.append((name,))
    return found


class Killer:
    """Kills with -9 and measures, in seconds, how long nobody answered."""

    def __init__(self, stack: Stack, loads: Sequence[PodLoad], exits: Exits, seed: str) -> None:
        self._stack = stack
        self._loads = loads
        self._exits = exits
        self._random = random.Random(seed)
        self._pause = threading.Event()
        self.seconds: dict[str, list[float]] = {}
        """By victim (workers of machines by themselves: their agents are slow to answer); of two that died together
        until both were back, by "one with the other"."""
        self.deaths: dict[str, int] = {}
        self._lasting: set[str] = set()

    def begin(self) -> None:
        """Only what lives to the end runs now: what the keeper holds of it, it must hold again after each death."""
        self._lasting = self._held()

    def kill(self, names: Sequence[str]) -> None:
        """One death, or two of which the second hits while the first is being made good. Comes back when all are
        replaced and have run for long enough to be started again at once."""
        loads = {name: self._load(name, names) for name in names}
        strikes = [self._prepared(name, loads[name]) for name in names]
        backs = []
        for number, strike in enumerate(strikes):
            if number:
                self._pause.wait(self._random.uniform(0, _LONGEST_PAUSE))
            self.deaths[names[number]] = self.deaths.get(names[number], 0) + 1
            backs.append(strike())
        began = time.monotonic()
        for back in backs:
            back()
        of_machine = " of a machine" if names == ("worker",) and loads["worker"].is_machine else ""
        self.seconds.setdefault(" with ".join(sorted(names)) + of_machine, []).append(time.monotonic() - began)
        if "gateway" in names:
            load = loads["gateway"]
            eventually(lambda: self._sandbox_api_answers(load), "the Sandbox API answers", timeout=_SECONDS)
            if names == ("gateway",):
                self.seconds.setdefault("gateway for the Sandbox API", []).append(time.monotonic() - began)
        for name in names:
            if name not in ("worker", "supervisord", "everything"):
                self._settled(name)
        if "keeper" in names:
            eventually(lambda: self._held() >= self._lasting, "the keeper has everything again", timeout=_SECONDS)

    def _load(self, name: str, names: Sequence[str]) -> PodLoad:
        """The one that is asked afterwards; of a worker its own."""
        with_keeper = name == "worker" and "keeper" in names
        return self._random.choice([load for load in self._loads if not (with_keeper and load.is_relayed)])

    def _prepared(self, name: str, load: PodLoad) -> Callable[[], Back]:
        """Everything that is to be known before the kill, which is what this gives."""
        match name:
            case "worker":
                return self._worker(load)
            case "supervisord":
                return lambda: self._with_supervisord(["gateway", "containerd"])
            case "everything":
                return lambda: self._with_supervisord([])
            case _:
                return self._program(name, load)

    def _worker(self, load: PodLoad) -> Callable[[], Back]:
        program = f"sandbox:{load.pod.id}"
        self._settled(program)
        connection = self._connected(load)
        victim = self._pid(program)

        def back() -> None:
            with closing(connection):
                self._told(connection, load)

        def strike() -> Back:
            os.kill(victim, signal.SIGKILL)
            return back

        return strike

    def _program(self, name: str, load: PodLoad) -> Callable[[], Back]:
        self._settled(name)
        connection = self._connected(load) if name == "gateway" else None
        victim = self._pid(name)
        number = self._random.choice((signal.SIGKILL, signal.SIGTERM)) if name == "containerd" else signal.SIGKILL

        def back() -> None:
            if connection is not None:
                with closing(connection):
                    self._told(connection, load)
                return
            self._replaced(name, victim)
            if name == "containerd":
                self._stack.wait_ready()

        def strike() -> Back:
            if name == "gateway":
                self._exits.gateway_dies()
            os.kill(victim, number)
            return back

        return strike

    def _connected(self, load: PodLoad) -> TaskConnection:
        """As containerd is, which everybody who shall answer over it has answered before."""
        connection = TaskConnection(f"{self._stack.layout.run}/task.sock", int(_SECONDS))
        self._told(connection, load)
        return connection

    def _told(self, connection: TaskConnection, load: PodLoad) -> None:
        """The state of a container that shall run is asked for and answered."""
        state = connection.state(load.idle.id)
        if state.status != Status.RUNNING:
            load.wrong.append(f"{load.pod.config.metadata.name}/{load.idle.name} does not run: {state}")

    def _sandbox_api_answers(self, load: PodLoad) -> bool:
        """It has another way in than containers: gRPC, whose connections end with the gateway."""
        with Gateway(self._stack.layout.gateway_socket) as gateway:
            try:
                gateway.status(load.pod.id, load.pod.engine.handler)
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.UNAVAILABLE:
                    return False
                raise
        return True

    def _with_supervisord(self, others: Sequence[str]) -> Back:
        """Kill supervisord and wait until ``others``, which end with it, have; without others, kill all there are."""
        daemon = self._stack.supervisord_pid()
        programs = [self._stack.pid(name) for name in others] or [info["pid"] for info in self._stack.programs()]
        victims = [os.pidfd_open(pid) for pid in (daemon, *filter(None, programs))]
        try:
            for victim in victims if not others else victims[:1]:
                signal.pidfd_send_signal(victim, signal.SIGKILL)
            for victim in victims:
                select.select([victim], [], [], _SECONDS)
        finally:
            for victim in victims:
                os.close(victim)
        return self._stack.start

    def _held(self) -> set[str]:
        """What the keeper holds; nothing while it is away. supervisord calls it running long before it listens."""
        keeper = Keeper(f"{self._stack.layout.run}/keeper.sock")
        try:
            return set(keeper.list(""))
        except Unavailable:
            return set()
        finally:
            keeper.close()

    def _pid(self, program: str) -> int:
        """Never 0, which would be ourselves."""
        return eventually(lambda: self._stack.pid(program), f"{program} runs", timeout=_SECONDS)

    def _replaced(self, name: str, victim: int) -> None:
        eventually(lambda: self._stack.pid(name), name, until=lambda pid: pid not in (0, victim), timeout=_SECONDS)

    def _settled(self, program: str) -> None:
        name = program.rpartition(":")[2]

        def state() -> str:
            return next((info["statename"] for info in self._stack.programs() if info["name"] == name), "UNKNOWN")

        eventually(state, f"{program} runs", until=lambda seen: seen == "RUNNING", timeout=_SECONDS)
