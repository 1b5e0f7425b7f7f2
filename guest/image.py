"""The files that a VMM is given: kernel, initial memory disk, root disk; each a function of its input only."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable

from guest import recipe, vmlinux
from guest.closure import KernelModules, Unpacked
from guest.cpio import Writer
from guest.packages import run

_HERE = os.path.dirname(os.path.abspath(__file__))
_EROFS_UUID = "6b756173-6172-4775-8573-740000000000"


def write_kernel(path: str, bzimage: str, unpacked: Unpacked) -> None:
    """The kernel as an uncompressed ELF file, taken out of Debian's bzImage."""
    with open(path, "wb") as file:
        file.write(vmlinux.compact(vmlinux.unpack(bzimage, unpacked)))


def write_initrd(
    path: str,
    unpacked: Unpacked,
    kernel: KernelModules,
    modules_from: str,
    epoch: int,
    *,
    modules: Iterable[str] = recipe.EARLY_MODULES,
    init: bytes = b"",
) -> None:
    """The initial memory disk: a busybox, the early ``modules``, and the script ``init`` (empty: what mounts the root
    disk)."""
    archive = io.BytesIO()
    writer = Writer(archive, epoch)
    for name in ("bin", "dev", "modules", "newroot", "proc", "sys"):
        writer.directory(name)
    writer.device("dev/console", 0o600, 5, 1)
    writer.regular("bin/busybox", _read(unpacked.path(recipe.BUSYBOX)), 0o755)
    names = kernel.in_order(modules)
    writer.regular("modules/order", "".join(f"{name}\n" for name in names).encode())
    for name in names:
        writer.regular(f"modules/{name}.ko", _read(f"{modules_from}/{kernel.file(name)}"))
    writer.regular("init", init or _read(f"{_HERE}/early-init"), 0o755)
    writer.close()
    with open(path, "wb") as file:
        file.write(archive.getvalue())


def write_root_disk(path: str, root: str, unpacked: Unpacked, epoch: int) -> None:
    """The directory ``root`` as an erofs file system, not compressed (docs/decisions/0005-guest-image.md): everything
    owned by root and as old as ``epoch``."""
    options = [f"-T{epoch}", f"-U{_EROFS_UUID}", "--all-root", "--quiet"]
    run(unpacked.command("usr/bin/mkfs.erofs", *options, path, root), "making the root disk")


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
