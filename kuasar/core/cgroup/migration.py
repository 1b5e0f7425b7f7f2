"""The kernel's lock around moving processes between cgroups, and how not to wait for it.

The first move after a quiet while waits for a grace period (10 to 20 ms on the machines this was measured on); those
that follow within the next few milliseconds do not. Whoever knows that it will have to move a process soon can have the
grace period pass meanwhile (:func:`prepare`). A process of one thread that moves itself needs no lock, and so no grace
period either (:func:`enter_alone`).
"""

from __future__ import annotations

import os
from contextlib import suppress

from kuasar.core.cgroup.hierarchies import Hierarchies, current
from kuasar.core.errors import BackendFailed, Unavailable


def enter_alone(path: str, at: Hierarchies | None = None) -> None:
    """Move the calling process, which must have one thread, into the cgroup of the hierarchies that have controllers.

    0.5 ms on version 1, where a thread that moves itself is never waited for; version 2 waits whoever is moved. On a
    hybrid host the version 2 hierarchy is left as it is: nothing is limited or counted there. Raises
    :class:`BackendFailed` when the cgroup is missing somewhere, :class:`Unavailable` (and moves nothing) for a process
    of several threads, of which only one would move.
    """
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise Unavailable(f"a process of {threads} threads cannot move itself thread by thread")
    hierarchies = at or current()
    name = "tasks" if hierarchies.version == 1 else "cgroup.procs"
    roots = dict.fromkeys(hierarchies.controllers.values()) if hierarchies.version == 1 else [hierarchies.unified]
    for root in roots:
        file = f"{root}{path}/{name}"
        try:
            with open(file, "wb", buffering=0) as tasks:
                tasks.write(b"0")
        except OSError as exc:
            raise BackendFailed(f"cannot enter cgroup {file}: {exc.strerror}", errno=exc.errno) from exc


def prepare() -> None:
    """Start and sit out the grace period by moving the caller to where it is. Blocks: call it in a thread.

    Only saves time; whatever goes wrong is left for the real move to tell.
    """
    hierarchies = current()
    with suppress(OSError), open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            directory = hierarchies.path(controllers.split(",")[0], path)
            if directory is not None:
                with open(f"{directory}/cgroup.procs", "w", encoding="ascii") as procs:
                    procs.write("0")
                return
