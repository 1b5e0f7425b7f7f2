"""What a module sees of files, and who it is."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from kuasar.core.errors import BackendFailed, InvalidArgument
from tests.integration.agent_wasm.conftest import Agent, spec, write
from tests.wasm import module

pytestmark = pytest.mark.root

ACCES, IO, NOSPC, PERM, NOTCAPABLE = 2, 29, 51, 63, 76
"""WASI's error numbers."""
READ_ONLY = (PERM, IO)
"""The refusal of a read-only directory: WASI's own, or what the engine makes of the kernel's EROFS."""


def bind(source: str, destination: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate", *options]}


def file_system(destination: str, kind: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": kind, "options": list(options)}


@pytest.fixture
def volume(tmp_path: Any) -> str:
    path = str(tmp_path / "volume")
    os.makedirs(f"{path}/sub")
    write(f"{path}/file", b"from the volume\n")
    return path


def test_the_image(agent: Agent, rootfs: str) -> None:
    assert agent.create(rootfs, spec("/read.wasm", "3", "etc/greeting")).run() == (0, b"from the image\n", b"")
    assert agent.create(rootfs, spec("/write.wasm", "3", "etc/new")).run() == (0, b"", b"")
    with open(f"{rootfs}/etc/new") as file:
        assert file.read() == "written\n"


def test_nothing_outside_the_image(agent: Agent, rootfs: str) -> None:
    for path in ("../outside", "../../etc/passwd", "/etc/passwd"):
        assert agent.create(rootfs, spec("/read.wasm", "3", path)).run()[:2] in ((PERM, b""), (NOTCAPABLE, b""))
    os.symlink("/etc/passwd", f"{rootfs}/link")
    assert agent.create(rootfs, spec("/read.wasm", "3", "link")).run()[1] == b""


def test_volumes_are_visible_by_descriptor_and_through_the_root(agent: Agent, rootfs: str, volume: str) -> None:
    mounts = [bind(volume, "/data")]
    assert agent.create(rootfs, spec("/preopens.wasm", mounts=mounts)).run()[1] == b"/\n/data\n"
    listed = agent.create(rootfs, spec("/list.wasm", "4", ".", mounts=mounts)).run()[1]
    assert sorted(listed.decode().split()) == [".", "..", "file", "sub"]
    assert agent.create(rootfs, spec("/read.wasm", "3", "data/file", mounts=mounts)).run()[1] == b"from the volume\n"
    assert agent.create(rootfs, spec("/write.wasm", "4", "new", mounts=mounts)).run()[0] == 0
    assert os.path.exists(f"{volume}/new")
    assert not os.listdir(f"{rootfs}/data")  # mounted for the container alone


def test_a_mount_below_a_mount(agent: Agent, rootfs: str, volume: str, tmp_path: Any) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "deep").write_bytes(b"deep\n")
    mounts = [bind(volume, "/data", "ro"), bind(str(inner), "/data/sub")]
    assert agent.create(rootfs, spec("/preopens.wasm", mounts=mounts)).run()[1] == b"/\n/data\n/data/sub\n"
    assert agent.create(rootfs, spec("/read.wasm", "5", "deep", mounts=mounts)).run()[1] == b"deep\n"
    assert agent.create(rootfs, spec("/write.wasm", "5", "new", mounts=mounts)).run()[0] == 0
    assert agent.create(rootfs, spec("/write.wasm", "4", "new", mounts=mounts)).run()[0] in READ_ONLY


def test_a_file_as_a_mount(agent: Agent, rootfs: str, volume: str) -> None:
    mounts = [bind(f"{volume}/file", "/etc/resolv.conf")]
    assert agent.create(rootfs, spec("/preopens.wasm", mounts=mounts)).run()[1] == b"/\n"
    assert (
        agent.create(rootfs, spec("/read.wasm", "3", "etc/resolv.conf", mounts=mounts)).run()[1] == b"from the volume\n"
    )


def test_read_only_root(agent: Agent, rootfs: str, volume: str) -> None:
    options = {"root": {"readonly": True}, "mounts": [bind(volume, "/data")]}
    assert agent.create(rootfs, spec("/read.wasm", "3", "etc/greeting", **options)).run()[1] == b"from the image\n"
    assert agent.create(rootfs, spec("/write.wasm", "3", "etc/new", **options)).run()[0] in READ_ONLY
    assert agent.create(rootfs, spec("/write.wasm", "4", "new", **options)).run()[0] == 0


def test_a_writable_file_in_a_read_only_root(agent: Agent, rootfs: str, volume: str) -> None:
    options = {"root": {"readonly": True}, "mounts": [bind(f"{volume}/file", "/etc/message")]}
    assert agent.create(rootfs, spec("/write.wasm", "3", "etc/message", **options)).run()[0] == 0
    assert agent.create(rootfs, spec("/write.wasm", "3", "etc/other", **options)).run()[0] in READ_ONLY


def test_read_only_volume(agent: Agent, rootfs: str, volume: str) -> None:
    mounts = [bind(volume, "/data", "ro")]
    assert agent.create(rootfs, spec("/read.wasm", "4", "file", mounts=mounts)).run()[1] == b"from the volume\n"
    assert agent.create(rootfs, spec("/write.wasm", "4", "new", mounts=mounts)).run()[0] in READ_ONLY
    assert agent.create(rootfs, spec("/write.wasm", "3", "data/new", mounts=mounts)).run()[0] in READ_ONLY
    assert not os.path.exists(f"{volume}/new")


def test_memory_file_systems_and_devices(agent: Agent, rootfs: str) -> None:
    mounts = [
        file_system("/proc", "proc"),
        file_system("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        file_system("/dev/pts", "devpts", "newinstance"),
        file_system("/scratch", "tmpfs", "ro", "size=64k"),
    ]
    listed = agent.create(rootfs, spec("/list.wasm", "3", "dev", mounts=mounts)).run()[1].decode().split()
    assert sorted(listed) == [".", "..", "full", "null", "random", "urandom", "zero"]
    assert agent.create(rootfs, spec("/read.wasm", "3", "dev/null", mounts=mounts)).run() == (0, b"", b"")
    assert agent.create(rootfs, spec("/write.wasm", "4", "full", mounts=mounts)).run()[0] == NOSPC
    assert agent.create(rootfs, spec("/write.wasm", "4", "shm", mounts=mounts)).run()[0] == 0
    assert agent.create(rootfs, spec("/write.wasm", "5", "x", mounts=mounts)).run()[0] in READ_ONLY
    assert not os.path.exists(f"{rootfs}/proc")


def test_symbolic_links_in_mount_points_stay_inside(agent: Agent, rootfs: str, volume: str, tmp_path: Any) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    os.symlink(str(outside), f"{rootfs}/escape")
    os.makedirs(f"{rootfs}{outside}")
    mounts = [bind(volume, "/escape/new")]
    assert agent.create(rootfs, spec("/preopens.wasm", mounts=mounts)).run()[0] == 0
    assert not os.listdir(outside)


def test_symbolic_links_to_the_module(agent: Agent, rootfs: str, tmp_path: Any) -> None:
    write(str(tmp_path / "outside.wasm"), module("hello"))
    os.symlink("/hello.wasm", f"{rootfs}/inside.wasm")
    os.symlink(str(tmp_path / "outside.wasm"), f"{rootfs}/outside.wasm")
    os.symlink("../../outside.wasm", f"{rootfs}/etc/relative.wasm")
    assert agent.create(rootfs, spec("/inside.wasm")).run()[0] == 0
    for path in ("/outside.wasm", "/etc/relative.wasm"):
        with pytest.raises(InvalidArgument, match="no file"):
            agent.create(rootfs, spec(path))


def test_the_module_may_be_in_a_volume_or_in_path(agent: Agent, rootfs: str, volume: str) -> None:
    write(f"{volume}/vol.wasm", module("hello"))
    assert agent.create(rootfs, spec("/data/vol.wasm", mounts=[bind(volume, "/data")])).run()[0] == 0
    process = {"env": ["PATH=/nowhere:/"]}
    assert agent.create(rootfs, spec("hello.wasm", process=process | {"cwd": "/etc"})).run()[0] == 0


def test_the_working_directory(agent: Agent, rootfs: str) -> None:
    process = {"cwd": "/made/up"}
    assert agent.create(rootfs, spec("/preopens.wasm", process=process)).run()[1] == b".\n/\n"
    assert agent.create(rootfs, spec("/write.wasm", "3", "new", process=process)).run()[0] == 0
    assert os.path.exists(f"{rootfs}/made/up/new")


def test_the_user_counts(agent: Agent, rootfs: str, volume: str) -> None:
    write(f"{rootfs}/etc/secret", b"secret\n")
    os.chmod(f"{rootfs}/etc/secret", 0o600)
    user = {"user": {"uid": 1000, "gid": 1000}}
    assert agent.create(rootfs, spec("/read.wasm", "3", "etc/secret", process=user)).run()[:2] == (ACCES, b"")
    assert agent.create(rootfs, spec("/write.wasm", "3", "etc/new", process=user)).run()[0] == ACCES
    os.chown(f"{rootfs}/etc/secret", 0, 7)
    os.chmod(f"{rootfs}/etc/secret", 0o640)
    grouped = {"user": {"uid": 1000, "gid": 1000, "additionalGids": [7], "umask": 0o027}}
    assert agent.create(rootfs, spec("/read.wasm", "3", "etc/secret", process=grouped)).run()[1] == b"secret\n"
    os.chmod(volume, 0o777)
    mounts = [bind(volume, "/data")]
    assert agent.create(rootfs, spec("/write.wasm", "4", "new", process=grouped, mounts=mounts)).run()[0] == 0
    info = os.stat(f"{volume}/new")
    assert (info.st_uid, info.st_gid, info.st_mode & 0o777) == (1000, 1000, 0o640)


def test_capabilities_decide_what_root_may_touch(agent: Agent, rootfs: str) -> None:
    write(f"{rootfs}/etc/other", b"other\n")
    os.chown(f"{rootfs}/etc/other", 1000, 1000)
    os.chmod(f"{rootfs}/etc/other", 0o600)
    assert agent.create(rootfs, spec("/read.wasm", "3", "etc/other")).run()[0] == ACCES
    process = {"capabilities": {"effective": ["CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN"]}}
    assert agent.create(rootfs, spec("/read.wasm", "3", "etc/other", process=process)).run()[1] == b"other\n"


def test_a_volume_the_user_may_not_read(agent: Agent, rootfs: str, volume: str) -> None:
    os.chmod(volume, 0o700)
    options = {"process": {"user": {"uid": 1000, "gid": 1000}}, "mounts": [bind(volume, "/data")]}
    assert agent.create(rootfs, spec("/preopens.wasm", **options)).run()[1] == b"/\n"
    assert agent.create(rootfs, spec("/read.wasm", "3", "data/file", **options)).run()[0] == ACCES
    os.chmod(rootfs, 0o700)
    with pytest.raises(BackendFailed, match="user 1000 cannot read the image's root directory"):
        agent.create(rootfs, spec("/preopens.wasm", **options))


def test_the_process_has_no_more_than_it_needs(agent: Agent, rootfs: str) -> None:
    process = {
        "user": {"uid": 1000, "gid": 2000, "additionalGids": [3000]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 50, "hard": 60}],
        "oomScoreAdj": 500,
    }
    container = agent.create(rootfs, spec("/spin.wasm", process=process))
    container.start()
    assert container.stdout.take() == b"spinning\n"
    with open(f"/proc/{container.pid}/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    assert status["Name"] == "spin.wasm"
    with open(f"/proc/{container.pid}/cmdline") as file:
        assert file.read().rstrip("\0") == "/spin.wasm"
    assert status["Uid"].split() == ["1000"] * 4
    assert status["Gid"].split() == ["2000"] * 4
    assert status["Groups"].split() == ["3000"]
    assert {status[f"Cap{which}"] for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert status["SigBlk"] == "0" * 16
    with open(f"/proc/{container.pid}/limits") as file:
        assert "Max open files            50                   60" in file.read()
    with open(f"/proc/{container.pid}/oom_score_adj") as file:
        assert file.read() == "500\n"
    with open(f"/proc/{container.pid}/mountinfo") as file:
        assert len(file.readlines()) == 1  # nothing of the host's
    assert os.getpgid(container.pid) == container.pid
    for thread in os.listdir(f"/proc/{container.pid}/task"):
        with open(f"/proc/{container.pid}/task/{thread}/status") as file:
            assert "CapPrm:\t" + "0" * 16 in file.read()
    os.kill(container.pid, signal.SIGKILL)
    assert container.wait() == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ("mount", "kind", "words"),
    [
        (bind("/nowhere", "/x"), InvalidArgument, "cannot mount /nowhere on /x"),
        (bind("/tmp", "/hello.wasm/x"), BackendFailed, "mounts[0]: cannot mount /tmp on /hello.wasm/x"),
        (file_system("/x", "tmpfs", "size=lots"), BackendFailed, "mounts[0]: cannot mount tmpfs on /x"),
        (file_system("/x", "nofs"), BackendFailed, "mounts[0]: cannot mount nofs on /x"),
    ],
)
def test_a_mount_that_cannot_be_made(
    agent: Agent, rootfs: str, mount: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind) as caught:
        agent.create(rootfs, spec("/hello.wasm", mounts=[mount]))
    assert words in str(caught.value)


def test_a_limit_that_cannot_be_set_is_named(agent: Agent, rootfs: str) -> None:
    process = {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 2**40, "hard": 2**40}]}
    with pytest.raises(BackendFailed, match=r"process\.rlimits\[0\]: cannot set RLIMIT_NOFILE"):
        agent.create(rootfs, spec("/hello.wasm", process=process))
