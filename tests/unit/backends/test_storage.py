"""What becomes of a container's mounts and devices in a virtual machine: the plan, without doing anything."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from kuasar.backends.storage import Plan, plan
from kuasar.core.errors import InvalidArgument, KuasarError, Unimplemented

GUEST = "/run/kuasar/shared"


def spec(**changes: Any) -> dict[str, Any]:
    return {
        "ociVersion": "1.2.1",
        "process": {"args": ["true"], "apparmorProfile": "x", "selinuxLabel": "y", "user": {"uid": 7}},
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "pod",
        "linux": {
            "cgroupsPath": "/kubepods/c",
            "mountLabel": "z",
            "namespaces": [
                {"type": "pid"},
                {"type": "mount"},
                {"type": "network", "path": "/proc/12/ns/net"},
                {"type": "ipc", "path": "/proc/12/ns/ipc"},
                {"type": "uts", "path": "/proc/12/ns/uts"},
            ],
        },
        **changes,
    }


def planned(rootfs: list[Any], mounted: dict[str, str] | None = None, bundle: str = "/b", **changes: Any) -> Plan:
    return plan("c", bundle, spec(**changes), rootfs, GUEST, mounted or {})


def bind(source: object, *options: str) -> dict[str, Any]:
    return {"destination": "/there", "type": "bind", "source": str(source), "options": ["rbind", *options]}


OVERLAY = [{"type": "overlay", "source": "overlay", "options": ["lowerdir=/l", "upperdir=/u", "workdir=/w"]}]


def test_what_belongs_to_the_hosts_kernel_is_left_out() -> None:
    made = planned(OVERLAY).spec
    assert made["process"] == {"args": ["true"], "user": {"uid": 7}}
    assert made["linux"] == {"namespaces": [{"type": "pid"}, {"type": "mount"}], "cgroupsPath": "/kuasar/c"}
    assert "hostname" not in made, "it is the pod's, which the guest has"
    assert made["root"] == {"path": "rootfs", "readonly": True}


def test_directories_of_the_root_file_system_go_through_the_share() -> None:
    made = planned(OVERLAY)
    path = f"{GUEST}/containers/c/rootfs"
    assert made.rootfs == [{"type": "bind", "source": path, "target": "", "options": ["rbind"]}]
    assert (made.binds, made.disks) == ([], [])


def test_a_root_that_the_caller_has_mounted_is_bound(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    made = planned([], bundle=str(tmp_path))
    assert made.binds == [(f"{tmp_path}/rootfs", "containers/c/rootfs", False, False)]
    with pytest.raises(InvalidArgument, match=r"root\.path: /b/rootfs is no directory"):
        planned([])


def test_disks_of_the_root_file_system_are_plugged_in(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"x")
    layers = [
        {"type": "erofs", "source": f"{tmp_path}/a", "options": ["ro", "loop"]},
        {"type": "ext4", "source": f"{tmp_path}/b", "options": ["rw", "loop"]},
        {"type": "overlay", "source": "overlay", "options": ["lowerdir={{ mount 0 }}"]},
    ]
    made = planned(layers)
    (first, path, read_only), (second, _, writable) = made.disks
    assert (path, read_only, writable) == (f"{tmp_path}/a", True, False)
    assert len(first) <= 20 and first != second
    assert made.rootfs[0] == {"type": "erofs", "source": f"disk:{first}", "options": ["ro"]}
    assert made.rootfs[2] == layers[2]
    assert planned(layers).disks == made.disks, "a repeated request names the same disks"


def layered(*options: str) -> list[Any]:
    return [{"type": "overlay", "source": "overlay", "options": ["index=off", "lowerdir=/s/2:/s/1", *options]}]


def test_layers_that_are_erofs_mounts_are_disks_of_a_machine_without_a_share(tmp_path: Path) -> None:
    for name in ("1", "2"):
        (tmp_path / name).write_bytes(b"layer")
    layers = {f"/s/{name}": str(tmp_path / name) for name in ("1", "2")}
    written = layered("upperdir=/s/3/fs", "workdir=/s/3/work")
    made = plan("c", "/b", spec(), written, GUEST, {}, layers)
    assert [(path, read_only) for _, path, read_only in made.disks] == [(layers["/s/2"], True), (layers["/s/1"], True)]
    assert [each["type"] for each in made.rootfs] == ["erofs", "erofs", "tmpfs", "overlay"]
    assert made.rootfs[3]["options"] == [
        "lowerdir={{ overlay 0 1 }}",
        "upperdir={{ mount 2 }}/upper",
        "workdir={{ mount 2 }}/work",
    ]
    assert not made.binds
    only_read = plan("c", "/b", spec(), layered(), GUEST, {}, layers)
    assert [each["type"] for each in only_read.rootfs] == ["erofs", "erofs", "overlay"]
    assert plan("c", "/b", spec(), written, GUEST, {}).rootfs[0]["type"] == "bind", "a share carries all of it"
    one_is_none = plan("c", "/b", spec(), written, GUEST, {}, {"/s/1": layers["/s/1"]})
    assert one_is_none.rootfs[0]["type"] == "bind"


def test_a_volume_is_bound_and_keeps_what_it_may(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    made = planned(OVERLAY, mounts=[bind(tmp_path, "ro"), bind(tmp_path / "file", "rw", "rslave")])
    assert made.binds == [
        (str(tmp_path), "containers/c/m0", True, False),
        (f"{tmp_path}/file", "containers/c/m1", False, True),
    ]
    assert [each["source"] for each in made.spec["mounts"]] == [f"{GUEST}/containers/c/m{n}" for n in (0, 1)]
    assert made.spec["mounts"][0]["options"] == ["rbind", "ro"]


@pytest.mark.parametrize(("kind", "kept"), [("tmpfs", ["size=1024k"]), ("hugetlbfs", ["pagesize=2M"])])
def test_an_empty_dir_in_memory_becomes_memory_of_the_guest(tmp_path: Path, kind: str, kept: list[str]) -> None:
    volume = tmp_path / "volumes" / "kubernetes.io~empty-dir" / "cache"
    volume.mkdir(parents=True)
    mounted = {str(volume): f"{kind} rw,{kept[0]},mode=777"}
    made = planned(OVERLAY, mounted, mounts=[bind(volume, "rprivate", "rw")])
    assert made.binds == []
    wanted = {"destination": "/there", "type": kind, "source": "volume:cache", "options": ["rw", *kept]}
    assert made.spec["mounts"] == [wanted]
    # the same directory on a disk is a directory like any other
    assert planned(OVERLAY, {}, mounts=[bind(volume)]).binds


def test_what_has_its_other_end_in_the_hosts_kernel_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for source, words in (("fifo", "is a FIFO"), ("socket", "is a socket")):
            with pytest.raises(InvalidArgument, match=words) as refused:
                planned(OVERLAY, mounts=[bind(tmp_path / source)])
            assert refused.value.field == "mounts[0].source"
    with pytest.raises(InvalidArgument, match="is a character device"):
        planned(OVERLAY, mounts=[bind("/dev/null")])


@pytest.mark.parametrize(
    ("changes", "kind", "field"),
    [
        ({"mounts": [bind("relative")]}, InvalidArgument, "mounts[0].source"),
        ({"mounts": [bind("/no/such/thing")]}, InvalidArgument, "mounts[0].source"),
        ({"mounts": [{"destination": "/x", "type": "nfs", "source": "a:/b"}]}, Unimplemented, "mounts[0]"),
        ({"hooks": {"prestart": [{"path": "/bin/true"}]}}, Unimplemented, "hooks.prestart"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(changes: dict[str, Any], kind: type[KuasarError], field: str) -> None:
    with pytest.raises(kind) as refused:
        planned(OVERLAY, **changes)
    assert refused.value.data["field"] == field


def test_file_systems_of_the_kernel_stay_as_they_are() -> None:
    mounts = [{"destination": "/proc", "type": "proc", "source": "proc"}, {"destination": "/t", "type": "tmpfs"}]
    assert planned(OVERLAY, mounts=mounts).spec["mounts"] == mounts


def device(path: str, kind: str, major: int, minor: int) -> dict[str, Any]:
    linux = spec()["linux"]
    return {"linux": {**linux, "devices": [{"path": path, "type": kind, "major": major, "minor": minor}]}}


def test_a_device_that_every_kernel_has_stays_and_the_hosts_own_is_refused() -> None:
    assert planned(OVERLAY, **device("/dev/null", "c", 1, 3)).spec["linux"]["devices"][0]["major"] == 1
    with pytest.raises(Unimplemented, match="/dev/kvm is a character device of the host"):
        planned(OVERLAY, **device("/dev/kvm", "c", 10, 232))


def test_a_block_device_becomes_a_disk() -> None:
    made = planned(OVERLAY, **device("/dev/data", "b", 7, 3))
    ((serial, path, read_only),) = made.disks
    assert made.spec["linux"]["devices"][0]["kuasarDisk"] == serial
    assert (path, read_only) == ("block:7:3", False)
    changes = device("/dev/data", "b", 7, 3)
    changes["linux"]["resources"] = {"devices": [{"allow": True, "major": 7, "minor": 3, "access": "r"}]}
    assert planned(OVERLAY, **changes).disks == [(serial, "block:7:3", True)]


@pytest.mark.parametrize("source", ["/no/such/disk", "/dev"])
def test_a_disk_that_is_none_is_named(source: str) -> None:
    with pytest.raises(InvalidArgument, match=r"rootfs\[0\]\.source"):
        planned([{"type": "erofs", "source": source}])
