"""What one test may leave on the machine: nothing that carries a name of the stack and was not there before."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from scripts import leftovers
from scripts.stack import Stack
from tests.e2e import cgroups

# of processes that come and go with containerd's calls, and of the stack itself
_PROGRAMS = (
    "containerd ",
    "kuasar.gateway",
    "kuasar-gateway",
    "kuasar.supervisor",
    "supervisor.supervisord",
    "kuasar-zygote",
)


def present(stack: Stack) -> set[str]:
    """Everything of pods that exists now: processes, mounts, network namespaces, interfaces, cgroups, directories."""
    layout = stack.layout
    found = {f"mount {path}" for path in leftovers.mounts(layout)}
    found |= {f"process {pid} {title}" for pid, title in _pod_processes(stack)}
    found |= {f"cgroup {path}" for path in cgroups.below(layout.cgroup_parent)}
    found |= {f"interface {name}" for name in leftovers.listed(f"/sys/class/net/{layout.bridge}/brif")}
    found |= _files("netns", [f"{layout.containerd_state}/io.containerd.grpc.v1.cri/netns"])
    found |= _files("sandbox directory", [f"{layout.run}/sandboxes"])
    found |= _files("address", [f"{layout.run}/cni/ipam/{layout.network}"], {"lock", "last_reserved_ip.0"})
    found |= _files(
        "directory",
        [
            f"{layout.containerd_state}/{plugin}"
            for plugin in ("io.containerd.runtime.v2.task/k8s.io", "io.containerd.grpc.v1.cri/containers")
        ]
        + [f"{layout.containerd_root}/io.containerd.grpc.v1.cri/{kind}" for kind in ("sandboxes", "containers")],
    )
    return found | {f"worker {name}" for name in workers(stack)}


def workers(stack: Stack) -> list[str]:
    """The sandboxes whose workers supervisord knows."""
    return [info["name"] for info in stack.programs() if info["group"] == "sandbox"]


def _pod_processes(stack: Stack) -> Iterable[tuple[int, str]]:
    """Processes of the stack, and all in the cgroups of its pods, except the programs of the stack."""
    found = dict(leftovers.processes(stack.layout))
    for directory in cgroups.below(stack.layout.cgroup_parent):
        try:
            with open(f"{directory}/cgroup.procs", encoding="ascii") as file:
                found |= {int(pid): f"in {directory}" for pid in file}
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ENODEV):  # it is gone, or goes while it is read
                raise
    return [(pid, title) for pid, title in found.items() if not any(name in f"{title} " for name in _PROGRAMS)]


def _files(kind: str, directories: list[str], except_for: Iterable[str] = ()) -> set[str]:
    return {
        f"{kind} {os.path.join(directory, name)}"
        for directory in directories
        for name in leftovers.listed(directory)
        if name not in except_for
    }
