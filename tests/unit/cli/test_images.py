"""The image builder: what it writes is a valid OCI archive, always the same, and containerd's words are understood."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from kuasar.cli.images import BUSYBOX, Entry, Image, Settings, busybox_image, main, wasm_image, write_archive
from kuasar.core.errors import InvalidArgument

MODULE = b"\0asm\1\0\0\0"


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any], bytes, list[tarfile.TarInfo]]:
    """Manifest, configuration, layer as stored, and what is in it; every digest and size on the way is checked."""
    with tarfile.open(path) as archive:
        files = {
            member.name: extracted.read()
            for member in archive.getmembers()
            if (extracted := archive.extractfile(member)) is not None
        }

    def blob(descriptor: dict[str, Any]) -> bytes:
        data = files.pop("blobs/" + descriptor["digest"].replace(":", "/"))
        assert hashlib.sha256(data).hexdigest() == descriptor["digest"].removeprefix("sha256:")
        assert len(data) == descriptor["size"]
        return data

    index = json.loads(files.pop("index.json"))
    assert json.loads(files.pop("oci-layout")) == {"imageLayoutVersion": "1.0.0"}
    manifest = json.loads(blob(index["manifests"][0]))
    config = json.loads(blob(manifest["config"]))
    stored = blob(manifest["layers"][0])
    assert files == {}, "an archive with blobs that nothing names"
    layer = gzip.decompress(stored) if manifest["layers"][0]["mediaType"].endswith("gzip") else stored
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        return manifest, config, stored, tar.getmembers()


@pytest.mark.parametrize("compress", [False, True])
def test_same_input_gives_same_bytes(tmp_path: Path, compress: bool) -> None:
    image = Image("localhost/a:1", (Entry("b", b"2"), Entry("a", b"1")), Settings(cmd=("a",)))
    turned = Image("localhost/a:1", image.entries[::-1], image.settings)
    first = write_archive(image, str(tmp_path / "1.tar"), compress=compress)
    assert write_archive(turned, str(tmp_path / "2.tar"), compress=compress) == first
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()
    manifest, _, _, _ = read(tmp_path / "1.tar")
    assert manifest["layers"][0]["mediaType"].endswith(".tar+gzip" if compress else ".tar")


def test_wasm_image_runs_the_module(tmp_path: Path) -> None:
    settings = Settings(("/ignored",), ("one", "two"), ("A=b",), "/data", "1000:1000")
    write_archive(wasm_image(MODULE, "localhost/hello:1", settings, "hello.wasm"), str(tmp_path / "hello.tar"))
    _, config, _, members = read(tmp_path / "hello.tar")
    assert config["config"] == {
        "Entrypoint": ["/hello.wasm"],
        "Cmd": ["one", "two"],
        "Env": ["A=b"],
        "WorkingDir": "/data",
        "User": "1000:1000",
    }
    assert [member.name for member in members] == ["hello.wasm", "tmp"]


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="not begin as WebAssembly"):
        wasm_image(b"\x7fELF", "localhost/hello:1")


def test_busybox_image_has_applets_users_and_tmp(tmp_path: Path) -> None:
    write_archive(busybox_image(), str(tmp_path / "busybox.tar"))
    _, config, _, members = read(tmp_path / "busybox.tar")
    by_name = {member.name: member for member in members}
    assert by_name["bin/busybox"].isreg() and by_name["bin/busybox"].mode == 0o755
    assert by_name["bin/sh"].linkname == "/bin/busybox"
    assert by_name["tmp"].mode == 0o1777
    assert by_name["home/user"].uid == 1000
    assert {"etc/passwd", "etc/group", "proc", "dev", "sys"} <= set(by_name)
    assert config["config"]["Cmd"] == ["sh"]
    seen: set[str] = set()
    for member in members:  # whoever unpacks needs the parent first
        parent = member.name.rpartition("/")[0]
        assert not parent or parent in seen
        seen.add(member.name)
    assert all(member.mtime == 0 and not member.uname for member in members)


@pytest.mark.parametrize("path", ["/etc", "../etc", "a/../b", "a//b", "", "."])
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    with pytest.raises(InvalidArgument, match="normalised relative path"):
        Image("localhost/a:1", (Entry(path),))


def test_two_entries_of_one_path_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="the same"):
        Image("localhost/a:1", (Entry("a"), Entry("a", b"")))


@pytest.mark.parametrize("name", ["busybox", "localhost/busybox", "localhost/Busybox:1", "localhost/a:1 --all", ""])
def test_names_that_containerd_would_change_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="host/path:tag"):
        Image(name, ())


def test_command_writes_and_tells_the_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = tmp_path / "hello.wasm"
    module.write_bytes(MODULE)
    output = tmp_path / "hello.tar"
    wanted = ["build", "wasm", "--name", "localhost/hello:1", "--file", str(module), "--output", str(output)]
    assert main(wanted) == 0
    digest = capsys.readouterr().out.strip()
    assert digest.startswith("sha256:")
    with tarfile.open(output) as archive:
        assert f"blobs/{digest.replace(':', '/')}" in archive.getnames()


def test_command_says_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "busybox", "--file", str(tmp_path / "none"), "--output", str(tmp_path / "x.tar")]) == 1
    assert "none cannot be read: No such file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_default_name_is_valid() -> None:
    Image(BUSYBOX, ())
