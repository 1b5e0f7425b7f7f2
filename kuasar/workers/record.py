"""The sandbox's record on disk: what the worker knows, written before it acts.

``<state dir>/sandboxes/<id>/sandbox.msgpack`` is versioned, sealed with a checksum and replaced by atomic rename, so
that a successor always finds a whole one. It includes the holdings: every kernel object is listed *before* it is made
and struck out after it is freed, so that nothing acquired is ever without a name on disk (the write-ahead journal of
the sandbox directory). The state directory is a tmpfs that a reboot empties together with everything recorded, hence
no fsync.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import time
from dataclasses import dataclass, field
from typing import Any

from kuasar.core import log
from kuasar.core.errors import BackendFailed, KuasarError, wrap
from kuasar.core.failpoints import failpoint
from kuasar.core.records import RECORD, seal, unseal
from kuasar.workers.pod import PodSpec

VERSION = 1
GENERATION_FILE = "generation"


@dataclass
class Record:
    """Everything that must survive the worker. Times in nanoseconds UTC, 0 = not yet."""

    id: str
    namespace: str
    sandboxer: str
    engine: str
    netns: str
    bundle: str
    pod: PodSpec
    state: str = "created"
    created_at: int = 0
    started_at: int = 0
    exited_at: int = 0
    exit_status: int = 0
    reason: str = ""
    machine: dict[str, Any] = field(default_factory=dict)
    """What the backend needs to adopt its machine: pid and start time, sockets. Its own business."""
    holdings: list[tuple[str, str]] = field(default_factory=list)
    """(kind, name) of every kernel object acquired or about to be, in order."""
    containers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What was asked for at ``task.create``, by container id, plus ``pid`` and, when it has ended, ``exit_status`` and
    ``exited_at``: enough to answer for them when the machine is gone."""
    keys: dict[str, str] = field(default_factory=dict)
    """Of the requests ``create`` and ``start`` that have been carried out and whose answer nobody has acknowledged yet:
    repeated to a successor because the worker died before it answered, they do nothing twice."""
    phases: list[tuple[str, float]] = field(default_factory=list)
    """(phase, milliseconds) of the start."""


class SandboxDirectory:
    """The directory of one sandbox. The worker is its only writer."""

    def __init__(self, sandboxes_dir: str, sandbox_id: str) -> None:
        self.path = f"{sandboxes_dir}/{sandbox_id}"
        self._sandbox_id = sandbox_id
        self.record: Record | None = None

    def next_generation(self) -> int:
        """Count this worker: one more than the last one said; on a read-only disk by the clock, so that a successor can
        adopt there, too. Makes the directory if needed."""
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        path = f"{self.path}/{GENERATION_FILE}"
        try:
            with open(path, encoding="ascii") as file:
                last = int(file.read())
        except FileNotFoundError:
            last = 0
        except ValueError:
            log.warning("generation file is damaged, counting on from the clock", path=path)
            last = int(os.stat(path).st_mtime)
        number = str(last + 1).encode()
        try:
            _replace(path, number)
        except OSError as exc:
            if exc.errno == errno.EROFS:
                log.warning("the state directory is read-only, counting on from the clock", path=path)
                return max(last + 1, int(time.time()))
            if exc.errno != errno.ENOSPC:
                raise wrap(exc, f"cannot count the workers of sandbox {self._sandbox_id}") from exc
            _overwrite(path, number)
        return last + 1

    def load(self) -> Record | None:
        """Read the record if there is one. A damaged one is set aside with its reason and raises BackendFailed."""
        path = f"{self.path}/{RECORD}"
        try:
            with open(path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return None
        try:
            self.record = _decode(data, self._sandbox_id)
        except Exception as exc:
            aside = f"{path}.damaged"
            os.replace(path, aside)
            raise BackendFailed(
                f"the record of sandbox {self._sandbox_id} is damaged ({exc}); set aside: {aside}"
            ) from exc
        return self.record

    def save(self) -> None:
        """Write the record. Raises BackendFailed (disk full, read-only) and leaves the old one in place."""
        if self.record is None:
            return
        wire = {"version": VERSION, **dataclasses.asdict(self.record)}
        try:
            _replace(f"{self.path}/{RECORD}", seal(wire))
        except OSError as exc:
            raise wrap(exc, f"cannot write the record of sandbox {self._sandbox_id}") from exc

    def save_if_possible(self) -> None:
        """Write the record where the way out must not end at a full disk: a failure is logged, and memory counts."""
        try:
            self.save()
        except KuasarError as exc:
            log.error("the record on disk is behind", error=exc)

    def acquiring(self, kind: str, name: str) -> None:
        """Write down that ``name`` is about to be made. Repeating is harmless."""
        assert self.record is not None
        if (kind, name) not in self.record.holdings:
            self.record.holdings.append((kind, name))
            self.save()
        failpoint(f"record.{kind}")

    def released(self, kind: str, name: str) -> None:
        """Strike out what has been freed. Repeating is harmless. A full disk is no reason to stop freeing: what is
        still written down is freed once more by a successor."""
        assert self.record is not None
        failpoint(f"freed.{kind}")
        if (kind, name) in self.record.holdings:
            self.record.holdings.remove((kind, name))
            self.save_if_possible()

    @property
    def is_damaged(self) -> bool:
        """Whether a record was set aside here."""
        return os.path.exists(f"{self.path}/{RECORD}.damaged")

    def remove(self) -> None:
        """Delete the directory and all in it; harmless when it is gone. Raises :class:`BackendFailed` naming what is
        mounted there, and then nothing is deleted."""
        from kuasar.core import trees  # most workers never come here

        if trees.mounts_below(self.path):
            raise BackendFailed(
                f"the directory of sandbox {self._sandbox_id} cannot be removed: {trees.blocked_by(self.path)}"
            )
        # The record goes first: a directory without it is nobody's, and is not replayed.
        for name in (RECORD, GENERATION_FILE):
            try:
                os.unlink(f"{self.path}/{name}")
            except FileNotFoundError:
                continue
        trees.remove_tree(self.path)


def _decode(data: bytes, sandbox_id: str) -> Record:
    wire = unseal(data)
    version = wire.pop("version", None)
    if version != VERSION:
        raise ValueError(f"version {version!r}, this worker reads {VERSION}")
    fields = {f.name for f in dataclasses.fields(Record)}
    unknown, missing = wire.keys() - fields, fields - wire.keys()
    if unknown or missing:
        raise ValueError(f"unknown fields {sorted(unknown)}, missing fields {sorted(missing)}")
    wire["pod"] = PodSpec.from_wire(wire["pod"])
    for name in ("holdings", "phases"):
        wire[name] = [tuple(item) for item in wire[name]]
    record = Record(**wire)
    if record.id != sandbox_id:
        raise ValueError(f"it belongs to sandbox {record.id!r}")
    return record


def _overwrite(path: str, data: bytes) -> None:
    """Write into the page that a file has already, for which even a full disk has room."""
    try:
        with open(path, "r+b", buffering=0) as file:
            file.write(data)
    except OSError as exc:
        raise wrap(exc, f"cannot write {path}") from exc


def _replace(path: str, data: bytes) -> None:
    """Write a file so that readers see the old or the new one, never a part."""
    temporary = f"{path}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)
    failpoint("record.written")
    os.replace(temporary, path)
