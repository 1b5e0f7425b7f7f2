"""Records as those see them who only look."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import pytest

from kuasar.core import records
from kuasar.core.process import start_time
from kuasar.workers.pod import PodSpec
from kuasar.workers.record import Record, SandboxDirectory


def sealed(packed: bytes) -> bytes:
    return zlib.crc32(packed).to_bytes(4, "big") + packed


def save(top: Path, sandbox: str, **values: Any) -> Record:
    directory = SandboxDirectory(str(top), sandbox)
    directory.next_generation()
    pod = PodSpec.from_wire({"name": "web", "namespace": "default", "uid": "u1", "host_network": True})
    record = Record(
        id=sandbox, namespace="k8s.io", sandboxer="kuasar-x", engine="x", netns="", bundle="", pod=pod, **values
    )
    directory.record = record
    directory.save()
    return record


def test_what_the_worker_writes_is_understood(tmp_path: Path) -> None:
    me = os.getpid()
    save(
        tmp_path,
        "b1",
        state="ready",
        created_at=5,
        machine={"agent": [me, start_time(me)]},
        phases=[("files", 1.5)],
        containers={"c1": {}},
    )
    save(tmp_path, "a1", state="stopped", exit_status=137, reason="killed", machine={"vmm": [me, 1]})
    first, second = records.read_all(str(tmp_path))
    assert (first.id, first.state, first.exit_status, first.reason) == ("a1", "stopped", 137, "killed")
    assert first.machine_pid == 0, "another process has this number now"
    assert (second.pod_name, second.pod_namespace, second.pod_uid) == ("web", "default", "u1")
    assert (second.machine_pid, second.generation, second.created_at) == (me, 1, 5)
    assert (second.phases, second.containers) == ((("files", 1.5),), ("c1",))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        *map(sealed, (b"\xc1", b"\x80\x80", b"\x91" * 2000, b"\x90", b"\x81\xa3pod\x03", b"\x81\xa6phases\x91\x01")),
    ],
    ids=["empty", "not sealed", "unused code", "trailing", "deep", "no map", "pod no map", "phases no pairs"],
)
def test_what_cannot_be_read_is_shown_with_the_reason(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a1").mkdir()
    (tmp_path / "a1" / "sandbox.msgpack").write_bytes(data)
    (found,) = records.read_all(str(tmp_path))
    assert found.state == records.DAMAGED
    assert found.reason.startswith("the record cannot be read: ")


def test_what_is_no_sandbox_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "..odd").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert records.read_all(str(tmp_path)) == []
    assert records.read_all(str(tmp_path / "none")) == []
    assert records.read(str(tmp_path), "none") is None
