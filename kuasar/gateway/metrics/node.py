"""What is looked up on the node when somebody scrapes: records, the reconciler's last look, our processes.

Blocking, for a thread. Asks nobody: neither a worker nor supervisord.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

from kuasar.core import reconciled, records
from kuasar.core.config import Config
from kuasar.core.records import Summary
from kuasar.gateway.metrics import catalogue as c
from kuasar.gateway.metrics.tallies import UNKNOWN, Labels, Values

_PAGE = os.sysconf("SC_PAGE_SIZE")
_MOST_TITLE_BYTES = 512
_TITLES = {
    b"kuasar-worker": "worker",
    b"kuasar.workers.main": "worker",
    b"kuasar-gateway": "gateway",
    b"kuasar.gateway.main": "gateway",
    b"kuasar.supervisor.zygote": "zygote",
    b"kuasar.supervisor.keeper": "keeper",
    b"kuasar.supervisor.reconcile": "reconciler",
    b"supervisord": "supervisord",
    b"kuasar-agent": "agent",
    b"kuasar.agent": "agent",
}
"""By what a command line contains; the first one counts."""
_MACHINE = "machine"
_LOOKED_AT = 4
"""Processes of a kind whose proportional memory is asked for at a time."""


def look(config: Config, known: Mapping[str, str]) -> Values:
    """Everything. ``known``: engines of the sandboxes that the gateway knows, of which some have no record yet."""
    found = records.read_all(config.sandboxes_dir)
    values = _sandboxes(found, known)
    values |= _objects(config)
    values |= _processes(os.getpid(), os.getppid(), [summary.machine_pid for summary in found if summary.machine_pid])
    return values


def _sandboxes(found: list[Summary], known: Mapping[str, str]) -> Values:
    recorded = {summary.id for summary in found}
    states: Counter[Labels] = Counter((summary.engine or UNKNOWN, summary.state) for summary in found)
    states.update((engine, "creating") for sandbox, engine in known.items() if sandbox not in recorded)
    containers: Counter[Labels] = Counter()
    for summary in found:
        containers[(summary.engine or UNKNOWN,)] += len(summary.containers)
    return {c.SANDBOXES: {**states}, c.CONTAINERS: {**containers}}


def _objects(config: Config) -> Values:
    last = reconciled.read(config.state_dir)
    if last is None:
        return {}
    return {
        c.RECORDED: {(kind,): count for kind, count in last.recorded.items()},
        c.ALIVE: {(kind,): count for kind, count in last.alive.items()},
        c.LEAKED: {(kind,): count for kind, count in last.leaked.items()},
        c.STEPS: {(verb, result): count for verb, results in last.steps.items() for result, count in results.items()},
        c.LOOKED_AT: {(): last.at},
    }


def _processes(gateway: int, parent: int, machines: Iterable[int]) -> Values:
    """``parent``'s children are supervisord's; started in another way the gateway tells of itself and the machines."""
    pids = {gateway: "gateway"}
    if _kind_of(parent) == "supervisord":
        pids |= {parent: "supervisord"} | {pid: kind for pid in _children(parent) if (kind := _kind_of(pid))}
    pids |= {pid: _kind_of(pid) or _MACHINE for pid in machines}
    by_kind: dict[str, list[int]] = {}
    for pid, kind in pids.items():
        by_kind.setdefault(kind, []).append(pid)
    values: Values = {c.PROCESSES: {}, c.RESIDENT: {}, c.DESCRIPTORS: {}, c.PROPORTIONAL: {}}
    for kind, members in by_kind.items():
        values[c.PROCESSES][kind,] = len(members)
        values[c.RESIDENT][kind,] = sum(map(_resident, members))
        values[c.DESCRIPTORS][kind,] = sum(map(_descriptors, members))
        if kind != _MACHINE:  # of its gigabytes the kernel would walk all pages
            values[c.PROPORTIONAL][kind,] = _proportional_of(members)
    return values


def _children(pid: int) -> Iterator[int]:
    with suppress(OSError), open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
        yield from (int(child) for child in file.read().split())


def _kind_of(pid: int) -> str:
    """By its command line; empty for what is none of ours."""
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        title = file.read(_MOST_TITLE_BYTES)
        return next((kind for words, kind in _TITLES.items() if words in title), "")
    return ""


def _resident(pid: int) -> int:
    with suppress(OSError), open(f"/proc/{pid}/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE
    return 0


def _descriptors(pid: int) -> int:
    with suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def _proportional_of(pids: Sequence[int]) -> float:
    """Of all together, from some of them: the kernel takes two milliseconds for each."""
    some = random.sample(pids, min(_LOOKED_AT, len(pids)))
    return sum(map(_proportional, some)) * len(pids) / len(some)


def _proportional(pid: int) -> int:
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        return next((int(line.split()[1]) * 1024 for line in file if line.startswith(b"Pss:")), 0)
    return 0
