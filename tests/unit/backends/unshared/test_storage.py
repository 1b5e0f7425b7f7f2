"""What a container gets in a machine that shares nothing: which disks, which volumes, which copies, which refusals."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kuasar.agent.guest.copies import Copies
from kuasar.agent.requests import Body
from kuasar.backends.base import Lent
from kuasar.backends.making import MakerHost
from kuasar.backends.unshared.packing import Packer
from kuasar.backends.unshared.storage import DiskStorage
from kuasar.core.aio import Loop
from kuasar.core.errors import BackendFailed, KuasarError, Unimplemented

SHARED = "/run/kuasar/shared"
SERIAL_OF_ROOT = "disk:k"


class Bench:
    """Storage whose disks are a list, whose guest is a directory, and whose images are made by a script."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.loop = Loop()
        self.host = MakerHost(self.loop, str(directory / "sandbox"))
        self.disks: dict[str, tuple[str, bool]] = {}
        self.images: list[str] = []
        self.refuse_disks = False
        self._copies = Copies(str(directory / "guest"))
        for name in ("sandbox", "bundle", "bundle/rootfs", "lower"):
            (directory / name).mkdir()
        mkfs = directory / "mkfs"
        mkfs.write_text('#!/bin/sh\necho "image of $3" >"$2"\n')
        mkfs.chmod(0o755)
        packer = Packer(self.host, str(mkfs), str(directory / "cache"))
        self.storage = DiskStorage(self.host, "odd", self, packer, self.ask, layers_are_disks=False)

    async def ask(self, op: str, body: Mapping[str, Any], deadline: float | None) -> Any:
        {"guest.write": self._copies.write, "guest.remove": self._copies.remove}[op](Body(dict(body)))
        return {}

    async def attach_disk(self, serial: str, path: str, read_only: bool, deadline: float | None) -> None:
        if self.refuse_disks:
            raise BackendFailed("no more drives")
        self.images.append(Path(path).read_text())
        self.disks[serial] = (path, read_only)

    async def detach_disk(self, serial: str) -> None:
        self.disks.pop(serial, None)

    def lend(self, *mounts: dict[str, Any], rootfs: list[Any] | None = None) -> Lent:
        spec = {"process": {"args": ["x"]}, "root": {"path": "rootfs"}, "linux": {}, "mounts": list(mounts)}
        layers = [{"type": "overlay", "source": "overlay", "options": [f"lowerdir={self.directory}/lower"]}]
        bundle = str(self.directory / "bundle")
        lend = self.storage.lend("c", bundle, spec, layers if rootfs is None else rootfs, SHARED, None)
        lent, _ = self.loop.run(lend)
        return lent

    @property
    def copied(self) -> Path:
        return self.directory / "guest" / "containers" / "c"

    def close(self) -> None:
        self.host.close()
        self.loop.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def bind(source: Path, *options: str) -> dict[str, Any]:
    return {"destination": "/there", "type": "bind", "source": str(source), "options": ["rbind", *options]}


def test_a_root_of_layers_is_an_image_with_memory_above_it(bench: Bench) -> None:
    lent = bench.lend()
    erofs, memory, overlay = lent.rootfs
    assert (erofs["type"], erofs["options"], memory["type"]) == ("erofs", ["ro"], "tmpfs")
    assert overlay["options"][0] == "lowerdir={{ mount 0 }}"
    ((serial, (path, read_only)),) = bench.disks.items()
    assert (erofs["source"], read_only) == (f"disk:{serial}", True)
    assert bench.images == [f"image of {bench.directory}/lower\n"]
    assert os.path.exists(path), "others will use it"
    assert bench.lend().rootfs == lent.rootfs, "a repeated request names the same disks"


def test_a_root_of_the_bundle_is_an_image_that_nobody_else_sees(bench: Bench) -> None:
    bench.lend(rootfs=[])
    ((path, _),) = bench.disks.values()
    assert bench.images == [f"image of {bench.directory}/bundle/rootfs\n"]
    assert not os.path.exists(path)


def test_a_root_on_a_disk_is_that_disk(bench: Bench) -> None:
    image = bench.directory / "image"
    image.write_text("snapshot")
    lent = bench.lend(rootfs=[{"type": "ext4", "source": str(image), "options": ["rw", "loop"]}])
    assert list(bench.disks.values()) == [(str(image), False)]
    assert lent.rootfs[0]["source"].startswith(SERIAL_OF_ROOT)
    assert not (bench.directory / "cache").exists()


def test_what_is_only_read_and_single_files_are_copied(bench: Bench, tmp_path: Path) -> None:
    secret, hosts = tmp_path / "secret", tmp_path / "hosts"
    secret.mkdir()
    (secret / "token").write_text("t")
    hosts.write_text("127.0.0.1 localhost")
    lent = bench.lend(bind(secret, "ro"), bind(hosts, "rw"))
    assert (bench.copied / "m0" / "token").read_text() == "t"
    assert (bench.copied / "m1").read_text() == "127.0.0.1 localhost"
    assert [mount["source"] for mount in lent.spec["mounts"]] == [f"{SHARED}/containers/c/m{n}" for n in (0, 1)]
    bench.loop.run(bench.storage.take_back("c", list(bench.disks)))
    assert not bench.copied.exists()
    assert bench.disks == {}


def test_an_empty_dir_is_a_volume_of_the_guest_on_whatever_it_lies(bench: Bench, tmp_path: Path) -> None:
    volume = tmp_path / "volumes" / "kubernetes.io~empty-dir" / "cache"
    volume.mkdir(parents=True)
    (mount,) = bench.lend(bind(volume, "rw", "rprivate", "nosuid")).spec["mounts"]
    assert (mount["type"], mount["source"], mount["options"]) == ("tmpfs", "volume:cache", ["rw", "nosuid"])
    assert not bench.copied.exists()


def test_a_directory_that_may_be_written_is_refused_with_the_ways_out(bench: Bench, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with pytest.raises(Unimplemented, match=r"mounts\[0\]\.source: .*/data .*read-only.*emptyDir.*block volume") as no:
        bench.lend(bind(data, "rw"))
    assert (no.value.engine, no.value.capability) == ("odd", "shared-directory")
    assert bench.disks == {}


def test_nothing_is_left_of_what_could_not_be_lent(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    bench.refuse_disks = True
    with pytest.raises(KuasarError, match="no more drives"):
        bench.lend(bind(tmp_path / "file"), rootfs=[])
    assert not bench.copied.exists()
    assert os.listdir(bench.directory / "cache" / "images") == []
