"""Who the container's process is allowed to be: limits, user, capabilities.

Credentials belong to a thread, so all of this must happen while the process has one thread only; the engine's threads
are made later and inherit it.
"""

from __future__ import annotations

import os
import resource
import signal
from contextlib import suppress

from kuasar.agent.drivers.wasm import syscalls as sys
from kuasar.agent.drivers.wasm.plan import Plan
from kuasar.core.errors import BackendFailed, Internal

_ALL_CAPABILITIES = range(64)
_NOBODY = 65534


def set_oom_score(plan: Plan) -> None:
    """Tell the kernel whom to kill first. Needs /proc, so it comes before the root changes."""
    if plan.oom_score_adj is None:
        return
    # Lowering the score needs CAP_SYS_RESOURCE; where the whole agent lacks it, the inherited score stays.
    with suppress(PermissionError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(plan.oom_score_adj))


def require_one_thread() -> None:
    """Raise :class:`Internal` if the process has more than one thread. Needs /proc."""
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise Internal(f"{threads} threads before the privileges are dropped: the others would keep them")


def set_limits(plan: Plan) -> None:
    """Resource limits and umask."""
    for n, limit in enumerate(plan.rlimits):
        try:
            resource.setrlimit(getattr(resource, limit.name), (limit.soft, limit.hard))
        except (OSError, ValueError) as exc:  # ValueError: no CAP_SYS_RESOURCE to raise the hard limit
            words = f"process.rlimits[{n}]: cannot set {limit.name} to {limit.soft}/{limit.hard}: {exc}"
            raise BackendFailed(words) from exc
    if plan.umask is not None:
        os.umask(plan.umask)


def drop(plan: Plan, executes: bool = False) -> None:
    """Become the container's user with the planned capabilities and no way to more.

    With ``executes`` they are kept by a program that is executed later, too.
    """
    sys.prctl(sys.PR_SET_NO_NEW_PRIVS, 1)
    inherited = plan.capabilities & sys.get_capabilities() if executes else 0
    if inherited:  # while they can still be had
        sys.set_capabilities(sys.get_capabilities(), inherited)
    for capability in _ALL_CAPABILITIES:
        try:
            sys.prctl(sys.PR_CAPBSET_DROP, capability)
        except OSError:
            break  # the first number that this kernel does not know
    sys.prctl(sys.PR_CAP_AMBIENT, sys.PR_CAP_AMBIENT_CLEAR_ALL)
    sys.prctl(sys.PR_SET_KEEPCAPS, 1)
    os.setgroups(plan.groups)
    os.setresgid(plan.gid, plan.gid, plan.gid)
    os.setresuid(plan.uid, plan.uid, plan.uid)
    sys.set_capabilities(plan.capabilities, inherited)
    for capability in _ALL_CAPABILITIES:
        if inherited >> capability & 1:
            sys.prctl(sys.PR_CAP_AMBIENT, sys.PR_CAP_AMBIENT_RAISE, capability)


def become_nobody() -> None:
    """For the compiler: no rights at all, and gone when the process that wants its work is gone."""
    parent = os.getppid()
    sys.prctl(sys.PR_SET_NO_NEW_PRIVS, 1)
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    sys.prctl(sys.PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of user, which clears it
    if os.getppid() != parent:
        os._exit(1)
