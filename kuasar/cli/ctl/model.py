"""A sandbox as the commands show it, from the gateway's answer or from its record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kuasar.core.records import Summary

if TYPE_CHECKING:
    from kuasar.api.gen.kuasar.admin.v1 import admin_pb2


@dataclass(frozen=True)
class Sandbox:
    """One sandbox. Times in nanoseconds UTC, 0 = not yet. ``None``: only the gateway would know."""

    id: str
    namespace: str
    sandboxer: str
    engine: str
    state: str
    pod_name: str
    pod_namespace: str
    pod_uid: str
    generation: int
    created_at: int
    started_at: int
    exited_at: int
    exit_status: int
    reason: str
    machine_pid: int
    worker: str | None = None
    worker_pid: int | None = None
    restarts: int | None = None
    containers: list[str] = field(default_factory=list)
    phases: list[tuple[str, float]] = field(default_factory=list)


_SAME = (
    "id",
    "namespace",
    "sandboxer",
    "engine",
    "state",
    "pod_name",
    "pod_namespace",
    "pod_uid",
    "generation",
    "created_at",
    "started_at",
    "exited_at",
    "exit_status",
    "reason",
    "machine_pid",
)


def from_gateway(answer: admin_pb2.Sandbox) -> Sandbox:
    """What the gateway says."""
    return Sandbox(
        **{name: getattr(answer, name) for name in _SAME},
        worker=answer.worker,
        worker_pid=answer.worker_pid,
        restarts=answer.restarts if answer.restarts >= 0 else None,
        containers=list(answer.containers),
        phases=[(phase.name, phase.milliseconds) for phase in answer.phases],
    )


def from_record(summary: Summary) -> Sandbox:
    """What the directory says."""
    return Sandbox(
        **{name: getattr(summary, name) for name in _SAME},
        containers=list(summary.containers),
        phases=list(summary.phases),
    )
