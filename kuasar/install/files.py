"""One place in the file system: what is there, putting something there as a whole, and putting back what was there."""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kuasar.core.errors import BackendFailed, InvalidArgument

ABSENT, FILE, LINK, OTHER = "absent", "file", "link", "other"
_KINDS = (ABSENT, FILE, LINK)


@dataclass(frozen=True)
class Found:
    """What is at a path: nothing, a file with all that restores it, a symbolic link, or something we never touch."""

    kind: str = ABSENT
    content: bytes = b""
    """Of a file; of a link its target."""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    """0: now."""

    @property
    def digest(self) -> str:
        """Says whether two are the same to a reader: kind and content."""
        return f"{self.kind}:{hashlib.sha256(self.content).hexdigest()}"

    @property
    def text(self) -> str:
        """For people."""
        if self.kind == LINK:
            return f"link to {os.fsdecode(self.content)}\n"
        return self.content.decode(errors="replace")

    def to_json(self) -> dict[str, Any]:
        """The form in the record."""
        values = {name: getattr(self, name) for name in ("kind", "mode", "uid", "gid", "mtime_ns")}
        return {**values, "content": base64.b64encode(self.content).decode()}

    @classmethod
    def from_json(cls, value: Any) -> Found:
        """Total decoder. Raises InvalidArgument."""
        try:
            numbers = {name: int(value[name]) for name in ("mode", "uid", "gid", "mtime_ns")}
            content = base64.b64decode(value["content"], validate=True)
            kind = value["kind"]
        except (KeyError, TypeError, ValueError) as exc:
            raise InvalidArgument(f"not the description of a file: {exc!r}") from exc
        if kind not in _KINDS:
            raise InvalidArgument(f"not the description of a file: kind {kind!r}")
        return cls(kind, content, **numbers)


def file(content: bytes, mode: int = 0o644) -> Found:
    """A file that belongs to us."""
    return Found(FILE, content, mode, os.geteuid(), os.getegid())


def link(target: str) -> Found:
    """A symbolic link."""
    return Found(LINK, os.fsencode(target), 0o777, os.geteuid(), os.getegid())


def look(path: str) -> Found:
    """What is there now. Raises BackendFailed if that cannot be read."""
    try:
        status = os.lstat(path)
        values = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns)
        if stat.S_ISLNK(status.st_mode):
            return Found(LINK, os.fsencode(os.readlink(path)), *values)
        if not stat.S_ISREG(status.st_mode):
            return Found(OTHER, b"", *values)
        with open(path, "rb") as opened:
            return Found(FILE, opened.read(), *values)
    except (FileNotFoundError, NotADirectoryError):
        return Found()
    except OSError as exc:
        raise BackendFailed(f"{path}: cannot be read: {exc.strerror}", errno=exc.errno) from exc


def put(path: str, wanted: Found) -> None:
    """Make it so, in one step for everyone who looks, and on the disk before this returns.

    Its directory must exist. Raises BackendFailed; then what was there is there.
    """
    part = f"{path}.kuasar-part"
    try:
        with suppress(FileNotFoundError):
            os.unlink(part)
        if wanted.kind == ABSENT:
            with suppress(FileNotFoundError):
                os.unlink(path)
        elif wanted.kind == LINK:
            os.symlink(os.fsdecode(wanted.content), part)
            os.rename(part, path)
        else:
            _write(part, wanted)
            os.rename(part, path)
        _sync_directory(os.path.dirname(path))
    except OSError as exc:
        with suppress(OSError):
            os.unlink(part)
        raise BackendFailed(f"{path}: cannot be written: {exc.strerror}", errno=exc.errno) from exc


def _write(path: str, wanted: Found) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as opened:
        opened.write(wanted.content)
        opened.flush()
        os.fchmod(fd, wanted.mode)
        if (wanted.uid, wanted.gid) != (os.geteuid(), os.getegid()):
            os.fchown(fd, wanted.uid, wanted.gid)
        if wanted.mtime_ns:
            os.utime(fd, ns=(wanted.mtime_ns, wanted.mtime_ns))
        os.fsync(fd)


def _sync_directory(path: str) -> None:
    with suppress(FileNotFoundError):  # what is to be absent may be in no directory
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def make_parents(path: str) -> list[str]:
    """Make the directories above ``path`` that are missing and give them, outermost first. Raises BackendFailed."""
    missing: list[str] = []
    parent = os.path.dirname(path)
    while not os.path.isdir(parent):
        missing.append(parent)
        parent = os.path.dirname(parent)
    missing.reverse()
    made: list[str] = []
    try:
        for each in missing:
            os.mkdir(each, 0o755)
            made.append(each)
    except OSError as exc:
        remove_empty(made)
        raise BackendFailed(f"{exc.filename}: cannot be made: {exc.strerror}", errno=exc.errno) from exc
    return made


def remove_empty(directories: list[str]) -> None:
    """Remove those of ``directories`` (outermost first) that are empty; others stay."""
    for each in reversed(directories):
        with suppress(OSError):
            os.rmdir(each)
