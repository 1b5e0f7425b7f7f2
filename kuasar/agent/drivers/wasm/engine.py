"""What an engine is to the driver: it makes a program of a module, and the program runs in the container's process.

Everything here happens in that process, in this order: ``load`` while it still is the agent's, ``furnish`` when its
mounts are made, ``prepare`` and ``run`` when it has become the container's. An engine that is a program of its own
(WasmEdge) executes it in ``run``; one that is a library (Wasmtime) calls it there. Either may start threads in ``run``,
not earlier.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from kuasar.agent.drivers.wasm.plan import Needs, Plan, Preopen

EXIT_TRAP = 134
EXIT_NOT_STARTED = 126


class Program(Protocol):
    """A module that is ready to be started: compiled, and all its imports known."""

    note: str
    """What the operator should know of how it was loaded; usually nothing."""
    prefix: str
    """Where the container's root file system is below the root that ``furnish`` leaves: empty if it is that root."""

    def furnish(self, plan: Plan) -> None:
        """Put what the engine needs of the host's files below ``plan.rootfs``, which is about to become the root."""

    def prepare(self, plan: Plan, preopens: Sequence[Preopen]) -> None:
        """Give it its surroundings: arguments, environment, descriptors 0 to 2, directories, limits."""

    def run(self) -> int:
        """Run it to its end; gives the exit code, unless the module or the engine ends the process itself."""


class Engine(Protocol):
    """One engine, as an agent is told to use it."""

    name: str
    needs: Needs
    executes: bool
    """Whether ``run`` executes a program: its rights must survive that, and the filter must let it through."""
    sockets: bool
    """Whether modules can have sockets (of the pod's network)."""

    async def check(self, plan: Plan, deadline: float | None) -> None:
        """In the agent, before anything is made: find the engine, and refuse what it cannot do of ``plan``."""

    def load(self, module_fd: int, name: str, plan: Plan) -> Program:
        """The program in the file ``module_fd``. Raises :class:`InvalidArgument` for what is no module,
        :class:`BackendFailed` with the engine's words for what cannot be compiled or linked."""


def complain(words: str) -> None:
    """To the container's standard error, where its user looks. Nobody may be reading it any more."""
    with suppress(OSError):
        os.write(2, f"kuasar: {words.rstrip()}\n".encode(errors="replace"))
