"""What to do about what there is: a pure function of :class:`Facts`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Directory:
    """A sandbox directory."""

    recorded: bool
    """Whether it holds a record: then the sandbox exists, and everything of it is its worker's business."""
    damaged: tuple[str, ...] = ()
    """Paths of records that were set aside because they cannot be read."""


@dataclass(frozen=True)
class Process:
    """A process of a sandbox that is not its worker: agent, VMM, virtiofsd."""

    pid: int
    started: int
    """Start time in clock ticks: a pid alone is nobody."""
    sandbox: str
    title: str


@dataclass(frozen=True)
class Facts:
    """What was found. Ids of sandboxes are keys or first parts everywhere."""

    directories: dict[str, Directory] = field(default_factory=dict)
    strangers: tuple[str, ...] = ()
    """Names among the sandbox directories that are no ids."""
    workers: frozenset[str] | None = frozenset()
    """Sandboxes that supervisord has a worker for, running or not; None: supervisord does not answer."""
    processes: tuple[Process, ...] = ()
    cgroups: tuple[tuple[str, str], ...] = ()
    """(sandbox, path)."""
    mounts: tuple[tuple[str, str], ...] = ()
    """(sandbox, mount point), in the order to unmount them."""
    kept: tuple[tuple[str, str], ...] = ()
    """(sandbox, name of an entry of the keeper)."""
    logs: tuple[tuple[str, str], ...] = ()
    """(sandbox, path of a log of its machine)."""
    lost: frozenset[str] = frozenset()
    """Sandboxes whose record was set aside earlier."""
    half_made: tuple[str, ...] = ()
    """Directories of templates that nobody is making any more."""

    @property
    def orphans(self) -> frozenset[str]:
        """Ids of which something is there, but neither a record nor a worker."""
        if self.workers is None:
            return frozenset()
        named = (self.cgroups, self.mounts, self.kept, self.logs)
        known = {each[0] for things in named for each in things} | {process.sandbox for process in self.processes}
        return frozenset((known | self.directories.keys()) - self._recorded - self.workers)

    @property
    def _recorded(self) -> set[str]:
        return {sandbox for sandbox, directory in self.directories.items() if directory.recorded}


@dataclass(frozen=True)
class Action:
    """One step. Two looks that give the same step mean the same thing: why it is done does not count."""

    verb: str
    """``adopt``, ``retire``, ``kill``, ``destroy-cgroup``, ``unmount``, ``drop``, ``set-aside`` or ``remove``."""
    sandbox: str
    """Empty: of none."""
    name: str
    """Of what it is done to: an id, a pid, a path, the name of an entry."""
    reason: str = field(compare=False)
    started: int = 0
    """Of a process: its start time."""


def plan(facts: Facts) -> list[Action]:
    """The steps, in the order to take them. Without supervisord's word nothing is known to be nobody's."""
    return list(_steps(facts))


def _steps(facts: Facts) -> Iterator[Action]:
    for path in facts.half_made:
        yield Action("remove", "", path, "the template in it was not finished, and nobody is making it")
    for sandbox, directory in sorted(facts.directories.items()):
        for path in directory.damaged:
            yield Action("set-aside", sandbox, path, "the record cannot be read")
    if facts.workers is None:
        return
    for sandbox, directory in sorted(facts.directories.items()):
        if directory.recorded and sandbox not in facts.workers:
            yield Action("adopt", sandbox, sandbox, "it has a record, but no worker")
        elif directory.damaged and not directory.recorded and sandbox in facts.workers:
            yield Action("retire", sandbox, sandbox, "its record is lost, its worker knows nothing of it")
    for sandbox in sorted(facts.orphans):
        yield from _free(facts, sandbox)


def _free(facts: Facts, sandbox: str) -> Iterator[Action]:
    """Everything of a sandbox that nobody answers for; users before what they use, its directory last."""
    known = facts.directories.get(sandbox)
    lost = sandbox in facts.lost or (known is not None and bool(known.damaged))
    why = "its record is lost" if lost else "it has neither a record nor a worker"
    for process in facts.processes:
        if process.sandbox == sandbox:
            yield Action("kill", sandbox, str(process.pid), f"{why}: {process.title}", process.started)
    named = (
        ("destroy-cgroup", facts.cgroups),
        ("unmount", facts.mounts),
        ("drop", facts.kept),
        ("remove", facts.logs),
    )
    for verb, things in named:
        for owner, name in things:
            if owner == sandbox:
                yield Action(verb, sandbox, name, why)
    if known is not None:
        yield Action("remove", sandbox, "", why)
