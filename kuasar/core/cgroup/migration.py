"""The kernel's lock around moving processes between cgroups, and how not to wait for it twice.

The first move after a quiet while waits for a grace period (10 to 20 ms on the machines this was measured on); those
that follow within the next few milliseconds do not. Whoever knows that it will have to move a process soon can have the
grace period pass meanwhile.
"""

from __future__ import annotations

from contextlib import suppress

from kuasar.core.cgroup.hierarchies import current


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
