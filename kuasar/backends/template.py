"""Templates: machines that were booted once, to "agent ready" and without identity, and kept to be cloned.

``<cache dir>/templates/<key>/`` holds ``memory`` (sparse), ``state`` (of processors and devices) and
``template.json``. The key says everything that must be equal for the state to fit (``shape.py``). A template appears
by the rename of its directory and is never changed; one that is damaged, or whose clone fails, is set aside and made
anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass

from kuasar.core import log
from kuasar.core.errors import BackendFailed, wrap

FORMAT = 1
_PAGE = 4096
_CHUNK = 1024 * 1024
_ABANDONED_SECONDS = 600.0
_UNUSED_SECONDS = 7 * 86400.0
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@dataclass(frozen=True)
class Description:
    """What ``template.json`` says."""

    key: str
    memory_bytes: int
    data_bytes: int
    """Of the memory that is not zero: what a clone copies."""
    memory_sha256: str
    state_sha256: str
    boot_seconds: float
    created_at: int
    format: int = FORMAT


class Template:
    """A template that was found whole."""

    def __init__(self, directory: str, description: Description) -> None:
        self.directory = directory
        self.description = description

    def copy_memory(self) -> int:
        """A new memory file with the template's content, which nobody can change; its descriptor. Blocks for some 10
        ms."""
        target = os.memfd_create("kuasar-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(target, self.description.memory_bytes)
            self.fill(target)
            fcntl.fcntl(target, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(target)
            raise
        return target

    def fill(self, target: int) -> None:
        """Copy the template's memory into the file ``target`` of the same size, which has nothing but holes; holes stay
        holes. Blocks for some 10 ms."""
        with open(f"{self.directory}/memory", "rb", buffering=0) as source:
            for start, end in data_of(source.fileno()):
                os.lseek(source.fileno(), start, os.SEEK_SET)
                os.lseek(target, start, os.SEEK_SET)
                while start < end:
                    start += os.sendfile(target, source.fileno(), None, end - start)

    def fill_huge_pages(self, target: int) -> None:
        """As :meth:`fill`, of a file that can only be mapped. Blocks for some 10 ms."""
        with (
            open(f"{self.directory}/memory", "rb", buffering=0) as source,
            mmap.mmap(target, self.description.memory_bytes) as memory,
            memoryview(memory) as view,
        ):
            for start, end in data_of(source.fileno()):
                while start < end:
                    with view[start:end] as part:
                        start += os.preadv(source.fileno(), [part], start)

    def open_state(self) -> int:
        """A descriptor at the start of the state. The caller closes it."""
        return os.open(f"{self.directory}/state", os.O_RDONLY | os.O_CLOEXEC)

    def open_memory(self) -> int:
        """A descriptor of the memory, to be mapped privately. The caller closes it."""
        return os.open(f"{self.directory}/memory", os.O_RDONLY | os.O_CLOEXEC)


class Templates:
    """The templates of this node below ``directory``. ``verified``: a directory that is emptied at boot, in which is
    noted whose bytes have been looked at."""

    def __init__(self, directory: str, verified: str) -> None:
        self.directory = directory
        self._verified = verified

    def find(self, key: str) -> Template | None:
        """The template of this key. A damaged one is set aside, with its reason in the log."""
        directory = f"{self.directory}/{key}"
        try:
            description = self._read(directory, key)
            self._verify(directory, description)
            os.utime(directory)  # for those who remove what nobody uses
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, BackendFailed) as exc:
            self.set_aside(key, f"it is damaged: {exc}")
            return None
        return Template(directory, description)

    def _read(self, directory: str, key: str) -> Description:
        with open(f"{directory}/template.json", "rb") as file:
            description = Description(**json.load(file))
        if description.format != FORMAT or description.key != key:
            raise ValueError(f"format {description.format}, key {description.key}")
        size = os.stat(f"{directory}/memory").st_size
        if size != description.memory_bytes:
            raise ValueError(f"its memory has {size} bytes of {description.memory_bytes}")
        return description

    def _verify(self, directory: str, description: Description) -> None:
        """Every byte of the state each time, those of the memory when the file is another than the last time."""
        with open(f"{directory}/state", "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != description.state_sha256:
                raise ValueError("its state is not what was written")
        found = os.stat(f"{directory}/memory")
        mark = f"{found.st_dev}-{found.st_ino}-{found.st_mtime_ns}-{found.st_blocks}"
        note = f"{self._verified}/{description.key}"
        if _text(note) == mark:
            return
        if digest_of_data(f"{directory}/memory") != description.memory_sha256:
            raise ValueError("its memory is not what was written")
        os.makedirs(self._verified, mode=0o700, exist_ok=True)
        _write(note, mark.encode())

    def set_aside(self, key: str, reason: str) -> None:
        """Nobody shall use this template any more; harmless when it is gone."""
        aside = f"{self.directory}/{key}.bad"
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(OSError):
            os.rename(f"{self.directory}/{key}", aside)
            log.error("a template of machines was set aside", key=key, reason=reason, kept=aside)

    def prune(self) -> list[str]:
        """Remove templates that nobody has used for a week, and what was set aside or left unfinished; gives the
        names."""
        removed = []
        for name in sorted(os.listdir(self.directory)):
            path = f"{self.directory}/{name}"
            limit = _ABANDONED_SECONDS if "." in name else _UNUSED_SECONDS
            if os.path.isdir(path) and time.time() - os.stat(path).st_mtime > limit:
                shutil.rmtree(path, ignore_errors=True)
                removed.append(name)
        return removed

    def new_directory(self, key: str) -> str:
        """Where a template is being made."""
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        path = f"{self.directory}/{key}.new-{os.getpid()}"
        os.mkdir(path, 0o700)
        return path

    def publish(self, directory: str, description: Description) -> Template:
        """The files in ``directory`` (from :meth:`new_directory`) are whole: make them the template of their key."""
        _write(f"{directory}/template.json", json.dumps(asdict(description), indent=2, sort_keys=True).encode())
        final = f"{self.directory}/{description.key}"
        try:
            shutil.rmtree(final, ignore_errors=True)
            os.rename(directory, final)
        except OSError as exc:
            raise wrap(exc, f"cannot put the template {final} in place") from exc
        return Template(final, description)


def data_of(fd: int) -> Iterator[tuple[int, int]]:
    """(start, end) of what is no hole in a file."""
    size, at = os.fstat(fd).st_size, 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # nothing but a hole is left
            return
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at


def digest_of_data(path: str) -> str:
    """A digest of a sparse file: of its data, each stretch with its place."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        for start, end in data_of(file.fileno()):
            digest.update(f"{start} {end} ".encode())
            os.lseek(file.fileno(), start, os.SEEK_SET)
            left = end - start
            while left:
                data = file.read(min(left, _CHUNK))
                digest.update(data)
                left -= len(data)
    return digest.hexdigest()


def write_sparse(source: int, path: str) -> int:
    """Write what is in the memory file ``source`` to ``path``, zero pages as holes; gives the bytes of data."""
    size, written = os.fstat(source).st_size, 0
    zero = bytes(_PAGE)
    with open(path, "wb", buffering=0) as target:
        os.ftruncate(target.fileno(), size)
        for start, end in data_of(source):
            at = start
            while at < end:
                chunk = os.pread(source, min(_CHUNK, end - at), at)
                for offset, length in _stretches(chunk, zero):
                    os.pwrite(target.fileno(), chunk[offset : offset + length], at + offset)
                    written += length
                at += len(chunk)
    return written


def _stretches(chunk: bytes, zero: bytes) -> Iterator[tuple[int, int]]:
    """(offset, length) of the pages of a chunk that hold something, neighbours together."""
    start = -1
    for at in range(0, len(chunk), _PAGE):
        if chunk[at : at + _PAGE] == zero:
            if start >= 0:
                yield start, at - start
            start = -1
        elif start < 0:
            start = at
    if start >= 0:
        yield start, len(chunk) - start


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _write(path: str, data: bytes) -> None:
    new = f"{path}.new-{os.getpid()}"  # several workers may write the same at the same time
    with open(new, "wb") as file:
        file.write(data)
    os.replace(new, path)
