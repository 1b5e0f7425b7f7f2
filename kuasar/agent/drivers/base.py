"""The contract between the agent and what makes containers: an OCI runtime, a Wasm engine.

A driver creates, starts and removes processes; it keeps no state machine (that is ``agent/containers.py``), sends no
signals (the agent is the parent of every process and does it itself) and reads no exit codes (the agent reaps).
Every verb may be called again after a failure; ``delete`` of what is gone succeeds. All of them raise the errors of
``kuasar/core/errors.py``: :class:`BackendFailed` with the engine's own words, :class:`InvalidArgument` naming the field
of the specification, :class:`Unimplemented` for what the engine has not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from kuasar.core.aio import Future, Loop
from kuasar.core.errors import InvalidArgument
from kuasar.core.spawn import Children, Exit

EXEC = "exec"
PAUSE = "pause"
UPDATE = "update"
TTY = "tty"
CHECKPOINT = "checkpoint"
SYSCTLS = "sysctls"


@dataclass(frozen=True)
class Context:
    """What the agent lends to its driver."""

    loop: Loop
    children: Children
    directory: str
    """The sandbox directory."""
    cgroup: str = ""
    """The sandbox's cgroup, in which the agent is; empty: there is none."""
    sandbox_id: str = ""
    host_network: bool = False
    """Whether the pod uses the host's network."""
    lost: Callable[[str], None] = lambda _: None
    """To be told, with the reason, when what all containers live in is dead: the sandbox ends."""


def require_text(options: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """The text option ``name`` of a driver. Raises :class:`InvalidArgument` naming it."""
    value = options.get(name) or default
    if not isinstance(value, str):
        raise InvalidArgument(f"options.{name}: a string is needed, got {value!r:.80}", field=f"options.{name}")
    return value


@dataclass(frozen=True)
class ContainerSetup:
    """One container to be made."""

    id: str
    """Validated identifier, unique in the sandbox."""
    directory: str
    """A directory of the container's own, 0700, in which the driver may keep what it needs; removed by the agent."""
    rootfs: str
    """Where its root file system is mounted."""
    spec: dict[str, Any]
    """The OCI runtime specification, already adapted to the agent's view (docs/agent-protocol.md)."""


@dataclass(frozen=True)
class ProcessStdio:
    """What a new process gets as standard descriptors. With ``terminal`` the three are unused: the driver makes a
    pseudo-terminal and gives its master back."""

    terminal: bool
    stdin: int | None
    stdout: int | None
    stderr: int | None
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Started:
    """A process that exists: its pid in the agent's pid namespace, and the terminal's master (owned by the agent).

    Usually it is a process of this kernel, which the agent signals and reaps. Where it lives in a kernel of its own,
    ``pid`` is the process that stands for it, and the driver says how it ends and takes its signals.
    """

    pid: int
    console: int | None = None
    ended: Future[Exit] | None = None
    """Its end; None: that of ``pid``."""
    signal: Callable[[int], None] | None = None
    """Sends it a signal, at once or soon, never failing; None: ``pid`` gets it."""
    cgroup: str = ""
    """The cgroup that is watched for memory shortage; empty: that of the specification."""


class Driver(Protocol):
    """The verbs. Which optional ones work is said by ``capabilities``; the agent refuses the others itself."""

    name: str
    capabilities: frozenset[str]
    refusals: Mapping[str, str]
    """Capability that is missing -> what to tell who asks for it; a plain sentence where there is none."""

    async def create(self, setup: ContainerSetup, stdio: ProcessStdio, deadline: float | None) -> Started:
        """Make the container and its init process, which must not run user code yet. Undoes itself on failure."""

    async def start(self, container_id: str, deadline: float | None) -> None:
        """Let the init process run. Allowed once after ``create``."""

    async def exec(
        self, container_id: str, exec_id: str, process: dict[str, Any], stdio: ProcessStdio, deadline: float | None
    ) -> Started:
        """Start another process (an OCI process) in a running container."""

    async def delete(self, container_id: str, deadline: float | None) -> None:
        """Forget a container whose processes are dead, with its cgroup. Repeating is harmless."""

    async def pause(self, container_id: str, deadline: float | None) -> None:
        """Freeze all processes of the container."""

    async def resume(self, container_id: str, deadline: float | None) -> None:
        """Thaw them."""

    async def update(self, container_id: str, resources: dict[str, Any], deadline: float | None) -> None:
        """Apply OCI LinuxResources to a created or running container."""


@runtime_checkable
class Measuring(Protocol):
    """A driver whose containers' use of the machine is not seen in their cgroups."""

    async def stats(self, container_id: str, deadline: float | None) -> dict[str, Any]:
        """What the container has used, in the form of ``kuasar/core/cgroup/statistics.py``."""

    def pids(self, container_id: str) -> list[int]:
        """The processes that stand for those of the container, while it lives; as the agent numbers them."""


@runtime_checkable
class Anticipating(Protocol):
    """A driver that profits from knowing some milliseconds ahead."""

    def anticipate(self) -> None:
        """A ``create`` or ``exec`` is on its way, probably. Does not block and changes nothing that can be seen."""
