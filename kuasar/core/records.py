"""What a sandbox's record on disk says, for those who only look: the gateway's list, tools while no gateway runs.

The worker owns the record (``workers/record.py``) and replaces it whole, so a reader needs no lock. Unlike the worker
this reader takes what it knows and forgives the rest: a record that cannot be read is shown, with the reason.

On disk a record is sealed: a checksum (CRC-32, 4 bytes, big-endian) before its msgpack, because a flipped bit in a path
would have a worker free what belongs to somebody else.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

from kuasar.core.errors import InvalidArgument
from kuasar.core.ids import require_id
from kuasar.core.process import start_time

RECORD = "sandbox.msgpack"
DAMAGED = "damaged"
_GENERATION = "generation"
_SEAL_BYTES = 4
_PROCESSES = ("vmm", "agent")
"""Under these names a backend records the process that is the machine, with its start time."""


@dataclass(frozen=True)
class Summary:
    """One sandbox. Times in nanoseconds UTC, 0 = not yet."""

    id: str
    state: str
    """As recorded, or :data:`DAMAGED`."""
    reason: str = ""
    """Why it ended, or why the record cannot be read."""
    namespace: str = ""
    sandboxer: str = ""
    engine: str = ""
    pod_name: str = ""
    pod_namespace: str = ""
    pod_uid: str = ""
    created_at: int = 0
    started_at: int = 0
    exited_at: int = 0
    exit_status: int = 0
    machine_pid: int = 0
    """On this host, of what stands for the machine, if it lives."""
    generation: int = 0
    containers: tuple[str, ...] = ()
    phases: tuple[tuple[str, float], ...] = ()
    """(phase, milliseconds) of the start."""
    cgroups: tuple[str, ...] = ()
    """Paths of those it holds on this host: its own and its containers'."""


def seal(wire: Mapping[str, Any]) -> bytes:
    """A record as it lies on disk."""
    packed: bytes = msgpack.packb(wire)
    return zlib.crc32(packed).to_bytes(_SEAL_BYTES, "big") + packed


def unseal(data: bytes) -> dict[str, Any]:
    """What was sealed. Raises ValueError for everything else."""
    packed = data[_SEAL_BYTES:]
    if len(data) <= _SEAL_BYTES or zlib.crc32(packed) != int.from_bytes(data[:_SEAL_BYTES], "big"):
        raise ValueError("its checksum is wrong: it was cut or changed")
    try:
        wire = msgpack.unpackb(packed)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as exc:
        raise ValueError(f"it is no msgpack: {exc}") from exc
    if not isinstance(wire, dict):
        raise ValueError("it is not a map")
    return wire


def read_all(sandboxes_dir: str) -> list[Summary]:
    """Every sandbox that has a record, sorted by id. Names that are no ids are skipped: they cannot be ours."""
    try:
        names = sorted(os.listdir(sandboxes_dir))
    except FileNotFoundError:
        return []
    found = (read(sandboxes_dir, name) for name in names if _is_id(name))
    return [summary for summary in found if summary is not None]


def read(sandboxes_dir: str, sandbox: str) -> Summary | None:
    """One of them; None if it has no record."""
    directory = f"{sandboxes_dir}/{sandbox}"
    try:
        with open(f"{directory}/{RECORD}", "rb") as file:
            data = file.read()
        return _summary(sandbox, unseal(data), _generation(directory))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError) as exc:
        return Summary(sandbox, DAMAGED, f"the record cannot be read: {exc}", generation=_generation(directory))


def _summary(sandbox: str, wire: Mapping[str, Any], generation: int) -> Summary:
    pod = _map(wire, "pod")
    return Summary(
        id=sandbox,
        state=_text(wire, "state"),
        reason=_text(wire, "reason"),
        namespace=_text(wire, "namespace"),
        sandboxer=_text(wire, "sandboxer"),
        engine=_text(wire, "engine"),
        pod_name=_text(pod, "name"),
        pod_namespace=_text(pod, "namespace"),
        pod_uid=_text(pod, "uid"),
        created_at=_number(wire, "created_at"),
        started_at=_number(wire, "started_at"),
        exited_at=_number(wire, "exited_at"),
        exit_status=_number(wire, "exit_status"),
        machine_pid=_machine_pid(_map(wire, "machine")),
        generation=generation,
        containers=tuple(str(name) for name in _map(wire, "containers")),
        phases=tuple((str(name), float(ms)) for name, ms in wire.get("phases") or ()),
        cgroups=tuple(str(name) for kind, name in wire.get("holdings") or () if kind == "cgroup"),
    )


def _map(wire: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = wire.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not a map")
    return value


def _text(wire: Mapping[str, Any], name: str) -> str:
    return str(wire.get(name) or "")


def _number(wire: Mapping[str, Any], name: str) -> int:
    return int(wire.get(name) or 0)


def _machine_pid(machine: Mapping[str, Any]) -> int:
    for name in _PROCESSES:
        known = machine.get(name)
        if isinstance(known, list) and len(known) == 2 and known[1] == start_time(int(known[0])):
            return int(known[0])
    return 0


def _generation(directory: str) -> int:
    try:
        with open(f"{directory}/{_GENERATION}", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def _is_id(name: str) -> bool:
    try:
        require_id(name, "sandbox")
    except InvalidArgument:
        return False
    return True
