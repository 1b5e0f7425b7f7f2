"""Builds OCI images from files, without a registry and without root: what the demo, the tests and the benchmarks run.

The same input gives the same bytes: times are the epoch, owners are numbers, entries are sorted. An image is one
layer in an OCI archive that ``ctr images import`` takes::

    python -m kuasar.cli.images build busybox --output busybox.tar
    python -m kuasar.cli.images build wasm --file hello.wasm --name localhost/hello:1 --output hello.tar

Nothing here talks to containerd.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import posixpath
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kuasar.core.errors import InvalidArgument, KuasarError

BUSYBOX = "localhost/kuasar/busybox:1"
PAUSE = "localhost/kuasar/pause:1"

_EPOCH = "1970-01-01T00:00:00Z"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}
_REFERENCE = re.compile(
    r"[a-z0-9][a-z0-9.-]*(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
)
_WASM_MAGIC = b"\0asm"

_PASSWD = b"""\
root:x:0:0:root:/root:/bin/sh
user:x:1000:1000:user:/home/user:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
"""
_GROUP = b"root:x:0:\nuser:x:1000:\nextra:x:2000:user\nnogroup:x:65534:\n"


@dataclass(frozen=True)
class Entry:
    """One thing in the layer: a directory (neither data nor link), a file, or a symbolic link."""

    path: str
    """Inside the image, without a leading slash."""
    data: bytes | None = None
    link: str = ""
    mode: int = 0o755
    owner: int = 0
    """User and group number."""


@dataclass(frozen=True)
class Settings:
    """What a container of the image runs, if nobody says otherwise."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = (_PATH,)
    working_dir: str = "/"
    user: str = ""


@dataclass(frozen=True)
class Image:
    """Everything that goes into an archive."""

    name: str
    """Full reference with a tag, ``localhost/hello:1``."""
    entries: tuple[Entry, ...]
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        """Raises InvalidArgument for what containerd would refuse or silently change."""
        if not _REFERENCE.fullmatch(self.name):
            raise InvalidArgument(f"name: {self.name!r} is not host/path:tag", field="name")
        paths = [entry.path for entry in self.entries]
        for path in paths:
            if path.startswith("/") or posixpath.normpath(path) != path or path.split("/")[0] in ("..", "."):
                raise InvalidArgument(f"path: {path!r} is not a normalised relative path", field="path")
        if len(set(paths)) != len(paths):
            raise InvalidArgument("path: two entries of the image have the same one", field="path")


def busybox_image(binary: str = "/usr/bin/busybox", name: str = BUSYBOX) -> Image:
    """A small userland: busybox and a link for each of its applets, users root, user (1000) and nobody, /tmp.

    Raises InvalidArgument when ``binary`` cannot be read or run.
    """
    return Image(name, _userland(binary), Settings(cmd=("sh",)))


def pause_image(binary: str = "/usr/bin/busybox", name: str = PAUSE) -> Image:
    """What containerd's own sandboxer runs to hold a pod's namespaces; ours needs none."""
    content = (Entry("bin"), Entry("bin/sleep", _read(binary)))
    return Image(name, content, Settings(entrypoint=("/bin/sleep", "2147483647")))


def wasm_image(module: bytes, name: str, settings: Settings | None = None, file_name: str = "main.wasm") -> Image:
    """An image whose entrypoint is the module; of ``settings`` everything but the entrypoint counts.

    Raises InvalidArgument when ``module`` is not WebAssembly.
    """
    if not module.startswith(_WASM_MAGIC):
        raise InvalidArgument(f"module: {file_name} does not begin as WebAssembly does", field="module")
    settings = settings or Settings(env=())
    settings = Settings((f"/{file_name}",), settings.cmd, settings.env, settings.working_dir, settings.user)
    return Image(name, (Entry(file_name, module), Entry("tmp", mode=0o1777)), settings)


def write_archive(image: Image, path: str, *, compress: bool = False) -> str:
    """Write ``image`` as an OCI archive, replacing ``path`` at once; gives the digest of its manifest."""
    layer = _layer(image.entries)
    diff_id = _digest(layer)
    media_type = "application/vnd.oci.image.layer.v1.tar"
    if compress:
        layer = gzip.compress(layer, mtime=0)
        media_type += "+gzip"
    config = _json(_config(image.settings, diff_id))
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [_descriptor(media_type, layer)],
        }
    )
    described = _descriptor("application/vnd.oci.image.manifest.v1+json", manifest)
    described["platform"] = {"architecture": architecture(), "os": "linux"}
    described["annotations"] = {
        "io.containerd.image.name": image.name,
        "org.opencontainers.image.ref.name": image.name.rpartition(":")[2],
    }
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [described],
    }
    blobs = {_digest(blob): blob for blob in (layer, config, manifest)}
    content = [Entry("oci-layout", _json({"imageLayoutVersion": "1.0.0"}), mode=0o644)]
    content += [Entry("index.json", _json(index), mode=0o644), Entry("blobs"), Entry("blobs/sha256")]
    content += [Entry(f"blobs/{digest.replace(':', '/')}", blob, mode=0o644) for digest, blob in blobs.items()]
    unfinished = f"{path}.{os.getpid()}"
    with open(unfinished, "wb") as file:
        file.write(_layer(content))
    os.replace(unfinished, path)
    return _digest(manifest)


def architecture() -> str:
    """This machine's, in OCI's words."""
    machine = os.uname().machine
    return _ARCHITECTURES.get(machine, machine)


def _config(settings: Settings, diff_id: str) -> dict[str, Any]:
    wanted = {
        "User": settings.user,
        "Env": list(settings.env),
        "Entrypoint": list(settings.entrypoint),
        "Cmd": list(settings.cmd),
        "WorkingDir": settings.working_dir,
    }
    return {
        "created": _EPOCH,
        "architecture": architecture(),
        "os": "linux",
        "config": {key: value for key, value in wanted.items() if value},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": _EPOCH, "created_by": "kuasar.cli.images"}],
    }


def _userland(binary: str) -> tuple[Entry, ...]:
    content = _read(binary)
    try:
        listed = subprocess.run(
            [binary, "--list-full"], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.CalledProcessError) as exc:
        raise InvalidArgument(f"binary: {binary} does not list its applets: {exc}", field="binary") from exc
    applets = sorted(set(listed.stdout.split()) - {"bin/busybox"})
    directories = {"bin", "dev", "etc", "home", "proc", "sys", "usr", "var", "run"}
    directories |= {parent for path in applets for parent in _parents(path)}
    return (
        *(Entry(path) for path in sorted(directories)),
        Entry("bin/busybox", content),
        *(Entry(path, link="/bin/busybox") for path in applets),
        Entry("etc/passwd", _PASSWD, mode=0o644),
        Entry("etc/group", _GROUP, mode=0o644),
        Entry("root", mode=0o700),
        Entry("home/user", owner=1000),
        Entry("tmp", mode=0o1777),
        Entry("var/tmp", mode=0o1777),
    )


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: n + 1]) for n in range(len(parts))]


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as exc:
        raise InvalidArgument(f"file: {path} cannot be read: {exc.strerror}", field="file") from exc


def _layer(entries: Iterable[Entry]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for entry in sorted(entries, key=lambda entry: entry.path):  # a parent's name is a prefix, so it comes first
            header = tarfile.TarInfo(entry.path)
            header.mode, header.uid, header.gid = entry.mode, entry.owner, entry.owner
            if entry.link:
                header.type, header.linkname, header.mode = tarfile.SYMTYPE, entry.link, 0o777
            elif entry.data is None:
                header.type = tarfile.DIRTYPE
            else:
                header.size = len(entry.data)
            tar.addfile(header, io.BytesIO(entry.data or b""))
    return buffer.getvalue()


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit codes: 0 written, 1 refused (the reason is on standard error), 2 wrong command line."""
    options = _parser().parse_args(argv)
    try:
        digest = write_archive(_wanted(options), options.output, compress=options.gzip)
    except (KuasarError, OSError) as exc:
        print(f"kuasar-images: {exc}", file=sys.stderr)
        return 1
    print(digest)
    return 0


def _wanted(options: argparse.Namespace) -> Image:
    if options.kind == "wasm":
        settings = Settings((), tuple(options.cmd), tuple(options.env), options.workdir, options.user)
        name = os.path.basename(options.file)
        return wasm_image(_read(options.file), options.name, settings, name)
    build = busybox_image if options.kind == "busybox" else pause_image
    return build(options.file, options.name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kuasar-images", description="build OCI images from files")
    build = parser.add_subparsers(required=True).add_parser("build", help="write one image")
    kinds = build.add_subparsers(dest="kind", required=True)
    busybox = kinds.add_parser("busybox", help="a small userland")
    busybox.add_argument("--name", default=BUSYBOX)
    pause = kinds.add_parser("pause", help="the pause image of containerd's own sandboxer")
    pause.add_argument("--name", default=PAUSE)
    for kind in (busybox, pause):
        kind.add_argument("--file", default="/usr/bin/busybox", help="a static busybox (default: %(default)s)")
    wasm = kinds.add_parser("wasm", help="a WebAssembly module as entrypoint")
    wasm.add_argument("--name", required=True, help="reference, as localhost/hello:1")
    wasm.add_argument("--file", required=True, help="the module")
    wasm.add_argument("--cmd", nargs="*", default=[], help="arguments of the module")
    wasm.add_argument("--env", nargs="*", default=[], help="NAME=value ...")
    wasm.add_argument("--workdir", default="/")
    wasm.add_argument("--user", default="")
    for kind in (busybox, pause, wasm):
        kind.add_argument("--output", required=True, help="archive to write")
        kind.add_argument("--gzip", action="store_true", help="compress the layer")
    return parser


if __name__ == "__main__":
    sys.exit(main())
