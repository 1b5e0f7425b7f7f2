"""The containers in a kernel that the pod has of its own: who they are, how they end, what they may have together.

The host sees the kernel's processes only. So a container's own cgroup stays empty (who looks for it finds the limits
that were asked for), and what counts are the limits of the kernel's cgroup, which are those of all containers together.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

from kuasar.agent.drivers.base import ContainerSetup
from kuasar.agent.drivers.shared_kernel.limits import together
from kuasar.core import cgroup, log
from kuasar.core.aio import Future, Lock, Loop
from kuasar.core.errors import KuasarError, NotFound
from kuasar.core.spawn import Exit

KILLED = Exit(0, signal.SIGKILL)


class Kernel(Protocol):
    """What the containers live in."""

    pid: int
    cgroup: str
    """Where it is; empty: there is none."""
    ended: Future[Exit]


@dataclass
class Member:
    """A container in the kernel."""

    id: str
    directory: str
    cgroup: str
    """Its own, empty of processes; empty: there is none."""
    resources: dict[str, Any]
    ended: Future[Exit]
    lock: Lock
    """One signal after the other."""

    @classmethod
    def of(cls, loop: Loop, setup: ContainerSetup) -> Self:
        """The container that is to be made."""
        linux = setup.spec.get("linux") or {}
        resources = dict(linux.get("resources") or {})
        return cls(setup.id, setup.directory, linux.get("cgroupsPath") or "", resources, Future(loop), Lock(loop))

    def end(self, how: Exit) -> None:
        """It has ended; harmless to repeat."""
        if not self.ended.done:
            self.ended.set_result(how)


M = TypeVar("M", bound=Member)


class Members(Generic[M]):
    """The containers of ``kernel``. They end when it does."""

    def __init__(self, loop: Loop, kernel: Kernel, sandbox_id: str) -> None:
        self._loop = loop
        self._sandbox_id = sandbox_id
        self._kernel = kernel
        self._members: dict[str, M] = {}

    def __iter__(self) -> Iterator[M]:
        return iter(self._members.values())

    def __len__(self) -> int:
        return len(self._members)

    def get(self, container_id: str) -> M | None:
        """The container, if there is one."""
        return self._members.get(container_id)

    def require(self, container_id: str) -> M:
        """The container. Raises :class:`NotFound`."""
        member = self._members.get(container_id)
        if member is None:
            raise NotFound(f"the runtime has no container {container_id}")
        return member

    def add(self, member: M) -> None:
        """Take it in, with a cgroup of its own, and let the kernel have what it may have. Undone by :meth:`remove`,
        also after a failure."""
        self._members[member.id] = member
        if member.cgroup:
            cgroup.create(member.cgroup)
            cgroup.mark(member.cgroup, self._sandbox_id)
            cgroup.apply(member.cgroup, member.resources)
        self._apply_limits()
        self._kernel.ended.add_done_callback(lambda _: member.end(KILLED))

    async def remove(self, member: M, deadline: float | None) -> None:
        """Forget a container that is gone from the kernel."""
        member.end(KILLED)
        if member.cgroup:
            await cgroup.destroy(self._loop, member.cgroup, deadline)
        self._members.pop(member.id, None)
        self._apply_limits()

    def update(self, member: M, resources: dict[str, Any]) -> None:
        """It may have something else from now on."""
        if member.cgroup:
            cgroup.apply(member.cgroup, resources)
        member.resources = merged(member.resources, resources)
        self._apply_limits()

    def pids(self, container_id: str) -> list[int]:
        """As ``base.Measuring.pids``: the kernel stands for whatever runs."""
        return [] if self.require(container_id).ended.done else [self._kernel.pid]

    def _apply_limits(self) -> None:
        """The kernel keeps what it has where the sum cannot be had (it uses more than a lower limit allows)."""
        if not self._kernel.cgroup or self._kernel.ended.done:
            return
        try:
            cgroup.apply(self._kernel.cgroup, together(one.resources for one in self))
        except KuasarError as exc:
            log.warning("the limits of the pod's kernel stay as they were", error=exc)


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """OCI resources after an update: what it does not name stays."""
    found = dict(old)
    for group, values in new.items():
        before = found.get(group)
        found[group] = {**before, **values} if isinstance(before, dict) and isinstance(values, dict) else values
    return found
