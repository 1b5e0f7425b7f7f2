"""The contract between a worker and what gives its sandbox a machine.

A backend object belongs to one sandbox and one worker; it holds handles, never the truth: everything a successor needs
is in ``Host.machine``, written before it is acted on. Verbs and the states of the sandbox that allow them:

=================  ==================  =====================================================================
verb               allowed in          blocks until / repeating
=================  ==================  =====================================================================
``launch``         starting            the machine exists; after a failure it has undone itself
``adopt``          unknown             a running machine is taken over (True) or proved dead (False)
``connect_agent``  after launch/adopt  the agent has answered; repeating reconnects
``settle``         starting            the machine is this pod's inside, too; harmless to repeat
``lend``           ready               what a container needs of the host can be reached by the agent
``take_back``      any                 what was lent is free again; harmless to repeat
``wait``           after launch/adopt  the machine has ended; any number of times
``stop``           any                 the machine is dead; stopping what is gone succeeds
``release``        stopped             everything it had acquired is freed; harmless to repeat
``resize``         ready               the machine has what it was given; asking for less is harmless
=================  ==================  =====================================================================

All raise the errors of ``kuasar/core/errors.py``. Verbs that need a capability are refused by :class:`Backend` itself.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn, Protocol

from kuasar.agent.client import AgentClient
from kuasar.backends.probing import Probe, ProbeHost, ask_version
from kuasar.core.aio import Loop
from kuasar.core.config import Engine
from kuasar.core.errors import Unimplemented
from kuasar.core.spawn import Completed

MOST_QUEUES = 256
BINARY_HINT = "name it with `binary` of the engine in kuasar.toml"


class Capability(enum.Enum):
    """What some engines can and others cannot."""

    EXEC = "exec"
    TTY = "tty"
    PAUSE = "pause"
    RESIZE = "resize"
    ATTACH = "attach"
    SNAPSHOT = "snapshot"
    CHECKPOINT = "checkpoint"
    HOST_NETWORK = "host-network"


class Stage(enum.Enum):
    """How far a stop had to go."""

    GONE = "gone"
    """There was nothing to stop."""
    ASKED = "asked"
    """The machine ended itself when asked."""
    KILLED = "killed"
    """SIGKILL was needed."""


@dataclass(frozen=True)
class Nic:
    """A network interface of the pod, for machines with a kernel of their own: frames go through a tap."""

    name: str
    mac: str
    mtu: int
    taps: tuple[int, ...]
    """A descriptor for each queue of the tap; the worker keeps its own. None where the machine opens it by name
    (:meth:`Backend.tap_owner`)."""
    tap: str = ""
    """The tap's name in the pod's network namespace."""


@dataclass(frozen=True)
class Lent:
    """A container as the agent shall make it."""

    spec: dict[str, Any]
    rootfs: list[Any]


@dataclass(frozen=True)
class MachineSpec:
    """What a machine is made for."""

    sandbox_id: str
    hostname: str
    netns: str
    """Path of the network namespace to join; empty: the host's."""
    cgroup: str
    """The sandbox's cgroup, made already; everything the backend starts goes in there."""
    host_pid: bool
    host_ipc: bool
    log_path: str
    """File to which output of the machine and its helpers is appended."""
    console_path: str = ""
    """File of a machine's console."""
    vcpus: int = 0
    """Processors that the pod's limits and overhead ask for; 0: no limit."""
    memory_bytes: int = 0
    """Memory that they ask for; 0: no limit."""
    nics: tuple[Nic, ...] = ()
    network: Mapping[str, Any] = field(default_factory=dict)
    """What the agent's operation ``network`` is to be given; empty: the pod's interfaces need nothing."""
    sysctls: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """The end of a machine."""

    exit_status: int
    reason: str


@dataclass(frozen=True)
class User:
    """As whom a program runs."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT = User(0, 0)


@dataclass(frozen=True)
class Place:
    """Where a program runs."""

    directory: str = ""
    """Its working directory, which it may use even if it could not get there; empty: that of whoever starts it."""
    netns: str = ""
    """Path of the network namespace it is in; empty: the host's."""


HERE = Place()


class AgentProcess(Protocol):
    """A process that has been forked and waits to be let go (see ``Host.start_agent``, ``Host.start_program``)."""

    pid: int

    def commit(self) -> None:
        """Let it run: its pid is recorded and it is in its cgroups."""

    def abort(self) -> None:
        """Make it exit instead; harmless after ``commit``."""


class Host(Protocol):
    """What the worker lends to its backend."""

    loop: Loop
    directory: str
    """The sandbox directory."""
    state_dir: str
    log_dir: str
    config_path: str
    """The configuration file; empty: the defaults."""

    @property
    def engine(self) -> str:
        """The engine's name in the configuration."""

    @property
    def machine(self) -> Mapping[str, Any]:
        """The facts remembered so far."""

    def remember(self, **facts: Any) -> None:
        """Write facts of the machine into the sandbox's record, before acting on them."""

    def acquiring(self, kind: str, name: str) -> None:
        """Record a kernel object before making it."""

    def released(self, kind: str, name: str) -> None:
        """Strike it out after freeing it."""

    def holdings(self) -> Sequence[tuple[str, str]]:
        """All that is recorded as acquired, in order: a copy."""

    def lap(self, phase: str) -> None:
        """A phase of the start has ended (docs/architecture.md, "Phases")."""

    async def run(self, argv: Sequence[str], deadline: float | None) -> Completed:
        """Run a program to its end and collect its output."""

    def keep(self, name: str, make: Callable[[], int]) -> int:
        """A descriptor that all workers of the node share: the kept one, else what ``make`` gives, which is kept from
        now on. The caller closes its own."""

    def start_agent(self, args: dict[str, Any], listen_fd: int, log_fd: int, flags: int) -> AgentProcess:
        """Fork an agent into new namespaces (``flags``: CLONE_NEW*), or exec one where the zygote is away."""

    def start_program(
        self,
        argv: Sequence[str],
        log_fd: int,
        fds: Sequence[int] = (),
        cgroup: str = "",
        user: User = ROOT,
        place: Place = HERE,
    ) -> AgentProcess:
        """Start a program in ``cgroup``, in a session of its own, that outlives this worker and is nobody's child to
        wait for. Its output goes to ``log_fd``, ``fds`` become 3, 4 and so on; the caller keeps its own copies."""


class Backend(ABC):
    """Base of all backends; the docstring of this module is the contract."""

    kind: ClassVar[str]
    capabilities: ClassVar[frozenset[Capability]] = frozenset()
    uses_host_cgroups: ClassVar[bool] = False
    """Whether making a container or an exec moves a process between cgroups of this host."""
    shares_host_files: ClassVar[bool] = True
    """Whether the agent can open paths of this host, and its containers' cgroups are this host's. Where it cannot, the
    worker relays the standard streams (``workers/stdio.py``)."""
    refused_host_namespaces: ClassVar[Mapping[str, str]] = {}
    """Kinds (``net``, ``pid``, ``ipc``) that a pod cannot share with the host, each with the reason."""

    def __init__(self, host: Host, settings: Engine) -> None:
        self.host = host
        self.settings = settings

    @classmethod
    async def probe(cls, host: ProbeHost, settings: Engine, deadline: float) -> Probe:
        """Whether this host has what the engine needs, and which: its program and version. Starts no machine of a
        sandbox. Raises :class:`BackendFailed` with the exact reason why it cannot be used."""
        return await ask_version(host, settings.binary or cls.kind, BINARY_HINT, deadline)

    @abstractmethod
    async def launch(self, spec: MachineSpec, deadline: float | None) -> None:
        """Make the machine and start it."""

    @abstractmethod
    async def adopt(self, deadline: float | None) -> bool:
        """Take over the machine that ``host.machine`` describes; False if it is dead."""

    @abstractmethod
    async def connect_agent(self, deadline: float | None) -> AgentClient:
        """A channel to the agent that has said hello."""

    async def settle(self, agent: AgentClient, spec: MachineSpec, deadline: float) -> None:  # noqa: B027 - most machines need nothing here
        """Make the machine this pod's own from inside, once the agent answers."""

    async def adopted(self, agent: AgentClient) -> None:  # noqa: B027 - most machines need nothing here
        """A new worker has the machine and its agent again."""

    async def lend(
        self, container_id: str, bundle: str, spec: dict[str, Any], rootfs: list[Any], deadline: float | None
    ) -> Lent:
        """Make what a container needs of the host reachable for the agent; on failure nothing stays."""
        return Lent(spec, rootfs)

    async def take_back(self, container_id: str) -> None:  # noqa: B027 - most machines need nothing here
        """Free what was lent to a container, which is gone."""

    @property
    def files_dir(self) -> str:
        """The pod's own files (hostname, hosts, resolv.conf), as the agent sees them."""
        return f"{self.host.directory}/files"

    @property
    def shm_dir(self) -> str:
        """Mount point of the pod's shared memory, as the agent sees it."""
        return f"{self.host.directory}/shm"

    @property
    def info(self) -> Mapping[str, str]:
        """Facts of the machine for the verbose status."""
        return {}

    @abstractmethod
    async def wait(self) -> Ended:
        """The end of the machine."""

    @abstractmethod
    async def stop(self, grace: float, agent: AgentClient | None) -> Stage:
        """End the machine: ask the agent, then kill; at most a few seconds more than ``grace``."""

    @abstractmethod
    async def release(self) -> None:
        """Free what the backend acquired, by the names in the record."""

    def tap_owner(self, sandbox_id: str) -> int | None:
        """The user whose machine opens taps by their names, in the pod's network namespace; None: it gets
        descriptors."""
        return None

    @property
    def max_queues(self) -> int:
        """How many queues a network interface of the machine can have."""
        return MOST_QUEUES

    @property
    def relays_streams(self) -> bool:
        """Whether the worker passes the standard streams of containers on, because the agent cannot."""
        return not self.shares_host_files

    @property
    @abstractmethod
    def pid(self) -> int:
        """The host pid that stands for the machine; 0 if none."""

    async def resize(self, vcpus: int, memory_bytes: int, deadline: float | None) -> None:
        """Give a ready machine at least so many processors and so much memory (0: whatever it has)."""
        self.refuse(Capability.RESIZE)

    async def attach(self, device: Mapping[str, Any]) -> str:
        """Attach a block device, shared directory or network interface; gives its name for :meth:`detach`."""
        self.refuse(Capability.ATTACH)

    async def detach(self, name: str) -> None:
        """Detach; detaching what is gone succeeds."""
        self.refuse(Capability.ATTACH)

    async def pause(self) -> None:
        """Freeze the whole machine."""
        self.refuse(Capability.PAUSE)

    async def resume(self) -> None:
        """Thaw it."""
        self.refuse(Capability.PAUSE)

    async def snapshot(self, directory: str) -> None:
        """Write the state of the paused machine."""
        self.refuse(Capability.SNAPSHOT)

    async def restore(self, directory: str, deadline: float | None) -> None:
        """Make the machine from a snapshot instead of launching it."""
        self.refuse(Capability.SNAPSHOT)

    def require(self, capability: Capability) -> None:
        """Raise Unimplemented naming engine and capability unless this engine has it."""
        if capability not in self.capabilities:
            self.refuse(capability)

    def refuse(self, capability: Capability) -> NoReturn:
        """Raise Unimplemented naming engine and capability."""
        raise Unimplemented(
            f"engine {self.kind} has no {capability.value}", engine=self.kind, capability=capability.value
        )
