"""A writer of the archive format of initial memory disks ("newc"), with nothing in it that differs between two runs."""

from __future__ import annotations

import stat
from typing import BinaryIO

_FIELDS = 13


class Writer:
    """Writes entries in the order they are added; every entry belongs to root and is as old as ``mtime``."""

    def __init__(self, file: BinaryIO, mtime: int) -> None:
        self._file = file
        self._mtime = mtime
        self._inode = 0
        self._written = 0

    def directory(self, name: str) -> None:
        """An empty directory."""
        self._entry(name, stat.S_IFDIR | 0o755, b"")

    def regular(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """A file with its content."""
        self._entry(name, stat.S_IFREG | mode, data)

    def device(self, name: str, mode: int, major: int, minor: int) -> None:
        """A character device."""
        self._entry(name, stat.S_IFCHR | mode, b"", major, minor)

    def close(self) -> None:
        """Write the trailer; the file stays open."""
        self._entry("TRAILER!!!", 0, b"")
        self._write(b"\0" * (-self._written % 512))

    def _entry(self, name: str, mode: int, data: bytes, major: int = 0, minor: int = 0) -> None:
        self._inode += 1
        path = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (self._inode, mode, 0, 0, links, self._mtime, len(data), 0, 0, major, minor, len(path), 0)
        assert len(fields) == _FIELDS
        self._write(b"070701" + b"".join(b"%08x" % field for field in fields) + path)
        self._align()
        self._write(data)
        self._align()

    def _align(self) -> None:
        self._write(b"\0" * (-self._written % 4))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._written += len(data)
