"""Reading a bundle's specification, and what the pod adds to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kuasar.core.errors import InvalidArgument
from kuasar.workers.files import resolv_conf
from kuasar.workers.pod import Dns
from kuasar.workers.spec import add_pod_mounts, read_spec


def spec_with(**changes: Any) -> dict[str, Any]:
    return {"process": {"args": ["sh"]}, "root": {"path": "rootfs"}, "mounts": []} | changes


def test_reads_a_good_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(spec_with()))
    assert read_spec(str(tmp_path)) == spec_with()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "dict is needed"),
        (json.dumps(spec_with(process={"args": []})), "process.args"),
        (json.dumps(spec_with(process={"args": "sh"})), "process.args"),
        (json.dumps(spec_with(root=None)), "root"),
        (json.dumps(spec_with(mounts=[{"type": "bind"}])), r"mounts\[0\]"),
        (json.dumps(spec_with(linux={"cgroupsPath": 3})), "linux.cgroupsPath"),
    ],
)
def test_refusals_say_what_is_wrong(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InvalidArgument, match=message):
        read_spec(str(tmp_path))


def test_relative_bundle_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="not an absolute path"):
        read_spec("some/where")


def test_pod_mounts_are_added_and_default_shm_replaced() -> None:
    spec = spec_with(mounts=[{"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}])
    add_pod_mounts(spec, "/files", "/pod/shm")
    by_destination = {mount["destination"]: mount for mount in spec["mounts"]}
    assert by_destination["/etc/hosts"]["source"] == "/files/hosts"
    assert by_destination["/etc/hostname"]["options"] == ["rbind", "rprivate", "rw"]
    assert by_destination["/dev/shm"]["source"] == "/pod/shm"
    assert len(spec["mounts"]) == 4


def test_what_the_container_brings_wins() -> None:
    own = [
        {"destination": "/etc/hosts/", "type": "bind", "source": "/kubelet/hosts"},
        {"destination": "/dev/shm", "type": "bind", "source": "/volume"},
    ]
    spec = spec_with(mounts=own.copy(), root={"path": "rootfs", "readonly": True})
    add_pod_mounts(spec, "/files", "/pod/shm")
    assert spec["mounts"][:2] == own
    assert {mount["destination"] for mount in spec["mounts"][2:]} == {"/etc/hostname", "/etc/resolv.conf"}
    assert spec["mounts"][2]["options"][-1] == "ro"


def test_host_ipc_keeps_its_shm() -> None:
    spec = spec_with(mounts=[{"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}])
    add_pod_mounts(spec, "/files", "")
    assert spec["mounts"][0]["type"] == "tmpfs"


def test_resolv_conf() -> None:
    dns = Dns(["1.1.1.1", "8.8.8.8"], ["a.example", "b.example"], ["ndots:5", "rotate"])
    assert resolv_conf(dns) == (
        "search a.example b.example\nnameserver 1.1.1.1\nnameserver 8.8.8.8\noptions ndots:5 rotate\n"
    )
    assert resolv_conf(Dns()) == ""
