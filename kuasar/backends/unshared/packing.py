"""Root file systems of directories, packed into erofs images, because a machine gets nothing but disks.

The image of a stack of layers is made once per node and kept in ``<cache dir>/images`` until nobody has asked for it
for a week: layers that a snapshotter has committed do not change. What has been written above them, or is no stack of
layers, is packed for its one container, and the image's name goes as soon as the machine has it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kuasar.agent import mounts
from kuasar.backends.base import Host
from kuasar.backends.probing import require_program
from kuasar.core import log
from kuasar.core.errors import BackendFailed, wrap

HINT = "install erofs-utils, name it with `mkfs_erofs` of the engine, or use the erofs or blockfile snapshotter"
_SECONDS = 600.0
_UNUSED_SECONDS = 7 * 86400.0


@dataclass(frozen=True)
class Packed:
    """An image, to be used read-only."""

    path: str
    is_kept: bool
    """Whether others will use it, too; if not, the caller removes it."""


_MOUNT = "pack-"


class Packer:
    """Makes images for the sandbox of ``host`` with the program ``mkfs``."""

    def __init__(self, host: Host, mkfs: str, cache_dir: str) -> None:
        self._host = host
        self._mkfs = mkfs
        self._directory = f"{cache_dir}/images"

    async def pack(self, container_id: str, rootfs: Sequence[Any], directory: str, deadline: float | None) -> Packed:
        """Pack the stack of mounts ``rootfs``, or without any ``directory``. Takes seconds for a large one that nobody
        has used yet. Raises :class:`BackendFailed` with the reason; nothing is left of a failure."""
        program = require_program(self._mkfs, HINT)
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            layers = _committed_layers(rootfs)
            if layers:
                path = f"{self._directory}/{_key(layers)}.erofs"
                if not _is_there(path):
                    self._prune()
                    options = ["ro", f"lowerdir={':'.join(layers)}"]
                    stack = [{"type": "overlay", "source": "overlay", "options": options}] if layers[1:] else []
                    await self._make(program, container_id, stack, layers[0], path, deadline)
                return Packed(path, True)
            owner = os.path.basename(self._host.directory)
            path = f"{self._directory}/{owner}-{container_id}.erofs"
            await self._make(program, container_id, rootfs, directory, path, deadline)
            return Packed(path, False)
        except OSError as exc:
            raise wrap(exc, f"cannot pack the root file system of {container_id}") from exc

    async def _make(
        self, program: str, container_id: str, stack: Sequence[Any], directory: str, path: str, deadline: float | None
    ) -> None:
        started = time.monotonic()
        target = f"{self._host.directory}/{_MOUNT}{container_id}"
        part = f"{path}.new-{os.getpid()}"
        if stack:
            self._host.acquiring("mount", target)
            os.makedirs(target, mode=0o700, exist_ok=True)
        try:
            if stack:
                mounts.mount_rootfs(list(stack), target, f"{target}.layers")
                directory = target
            limit = started + _SECONDS if deadline is None else deadline
            done = await self._host.run([program, "--quiet", part, directory], limit)
            if done.exit.shell_code:
                words = done.output.decode(errors="replace").strip()
                raise BackendFailed(f"{program} {done.exit.words}: {words:.500}")
            os.rename(part, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(part)
            if stack:
                self.unmount(container_id)
        size = os.stat(path).st_size
        log.info("packed", image=path, mib=size >> 20, seconds=round(time.monotonic() - started, 3))

    def unmount(self, container_id: str) -> None:
        """Free what packing has mounted; harmless to repeat."""
        target = f"{self._host.directory}/{_MOUNT}{container_id}"
        if not os.path.isdir(target):
            return
        mounts.unmount_rootfs(target, f"{target}.layers")
        for path in (f"{target}.layers", target):
            with suppress(FileNotFoundError):
                for name in os.listdir(path):
                    os.rmdir(f"{path}/{name}")
                os.rmdir(path)
        self._host.released("mount", target)

    def unmount_all(self) -> None:
        """The same for all of the sandbox, by its record."""
        for kind, path in self._host.holdings():
            name = os.path.basename(path)
            if kind == "mount" and name.startswith(_MOUNT):
                self.unmount(name.removeprefix(_MOUNT))

    def _prune(self) -> None:
        """Images that nobody has asked for lately, and what was left unfinished; a machine that has one keeps it."""
        for name in os.listdir(self._directory):
            path = f"{self._directory}/{name}"
            with suppress(FileNotFoundError):
                if time.time() - os.stat(path).st_mtime > _UNUSED_SECONDS:
                    os.unlink(path)


def _committed_layers(rootfs: Sequence[Any]) -> list[str]:
    """The layers of an overlay above which nothing has been written, uppermost first; none where that is not so."""
    if len(rootfs) != 1 or not isinstance(rootfs[0], dict) or rootfs[0].get("type") != "overlay":
        return []
    options = dict(str(option).partition("=")[::2] for option in rootfs[0].get("options") or [])
    upper = options.get("upperdir", "")
    if upper and os.listdir(upper):
        return []
    return [layer for layer in options.get("lowerdir", "").split(":") if layer]


def _key(layers: Sequence[str]) -> str:
    """Another one if a layer is another directory, though it may have the same path."""
    facts = []
    for layer in layers:
        found = os.stat(layer)
        facts.append(f"{layer} {found.st_dev} {found.st_ino} {found.st_ctime_ns}")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]


def _is_there(path: str) -> bool:
    try:
        os.utime(path)  # for those who remove what nobody uses
    except FileNotFoundError:
        return False
    return True
