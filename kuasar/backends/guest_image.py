"""The guest image as the engines see it: a directory with a guest's files and ``image.json``, which describes them.

It is made by ``guest/build.py`` of the source tree, or brought by the operator: whatever has the same description.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FORMAT = 1
NAME = "image.json"
KERNEL, INITRD, ROOT_DISK = "vmlinux", "initrd", "root.erofs"


class ImageUnusable(Exception):
    """The image cannot be booted; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class File:
    """One file of the image."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Package:
    """One Debian package that went into the image."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Image:
    """What ``image.json`` says."""

    kernel_release: str
    command_line: str
    """What the kernel must be told about this image; the user adds its console and whatever else it wants."""
    source_date_epoch: int
    files: Mapping[str, File]
    packages: Sequence[Package]

    @property
    def digest(self) -> str:
        """Names this image: equal for equal bytes."""
        return hashlib.sha256(
            "\n".join(f"{name} {self.files[name].sha256}" for name in sorted(self.files)).encode()
        ).hexdigest()


def describe(path: str) -> File:
    """Size and digest of a file."""
    with open(path, "rb") as file:
        return File(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


def load(directory: str, digests: bool = False) -> Image:
    """The image in ``directory`` when all of it is there. With ``digests`` every byte is looked at (0.1 s), otherwise
    the sizes. Raises :class:`ImageUnusable`."""
    path = f"{directory}/{NAME}"
    try:
        with open(path, "rb") as file:
            image = _parse(json.load(file))
    except OSError as exc:
        raise ImageUnusable(f"{path}: {exc.strerror} (has the guest image been built?)") from exc
    except (ValueError, TypeError, KeyError) as exc:
        raise ImageUnusable(f"{path} is damaged: {type(exc).__name__}: {exc}") from exc
    for name, wanted in image.files.items():
        _check(f"{directory}/{name}", wanted, digests)
    return image


def _parse(values: dict[str, Any]) -> Image:
    if values["format"] != FORMAT:
        raise ValueError(f"its format is {values['format']}, not {FORMAT}")
    image = Image(
        str(values["kernel_release"]),
        str(values["command_line"]),
        int(values["source_date_epoch"]),
        {str(name): File(int(file["bytes"]), str(file["sha256"])) for name, file in values["files"].items()},
        [Package(**package) for package in values["packages"]],
    )
    for name in (KERNEL, INITRD, ROOT_DISK):
        image.files[name]
    return image


def _check(path: str, wanted: File, digests: bool) -> None:
    try:
        size = os.stat(path).st_size
    except OSError as exc:
        raise ImageUnusable(f"{path}: {exc.strerror}") from exc
    if size != wanted.bytes:
        how = "truncated" if size < wanted.bytes else "too long"
        raise ImageUnusable(f"{path} is {how}: {size} bytes of {wanted.bytes}")
    if digests and describe(path).sha256 != wanted.sha256:
        raise ImageUnusable(f"{path} is damaged: its sha256 is not {wanted.sha256}")
