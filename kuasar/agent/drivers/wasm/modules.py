"""Compiled modules on disk, shared by all containers of the host.

Layout below the cache directory (0700)::

    <engine key>/<sha256 of the module>.cwasm    compiled code, 0600, mapped by the engine
    <engine key>/<sha256 of the module>.sum      sha256 of that file; its mtime is the time of last use
    digests/                                     what is known of unchanged files (``digests.py``)
    locks/<two hex digits>                       who compiles what: one at a time per module

An entry is used only after its digest has been compared with the recorded one; a damaged entry is thrown away and made
anew. Entries appear by rename, so a creator that dies leaves nothing but a temporary file, which is swept up after an
hour. When an entry is added, the least recently used ones go until all together are below the limit (2 GiB unless the
caller says otherwise); a container that runs from a removed entry keeps its mapping. Nothing here knows the engine: the
key, and how to compile, come from the caller.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from kuasar.agent.drivers.wasm.digests import FileDigests

MAX_BYTES = 2 * 1024 * 1024 * 1024
_TEMPORARY_SECONDS = 3600.0
_RECORD_SECONDS = 7 * 86400.0


class ModuleCache:
    """The entries of one engine key. Any number of processes may use the same directory at once."""

    def __init__(self, directory: str, engine_key: str, max_bytes: int = MAX_BYTES) -> None:
        """Makes the directories; raises ``OSError`` if they cannot be had."""
        self._root = directory
        self._entries = os.path.join(directory, engine_key)
        self._locks = os.path.join(directory, "locks")
        self._max_bytes = max_bytes
        records = os.path.join(directory, "digests")
        os.makedirs(directory, 0o700, exist_ok=True)
        for path in (self._entries, self._locks, records):
            with suppress(FileExistsError):
                os.mkdir(path, 0o700)
        self.digests = FileDigests(records)

    def get(self, digest: str, compile_to: Callable[[int], None]) -> int:
        """A descriptor of the compiled form of the module with ``digest``; the caller closes it.

        ``compile_to(fd)`` writes it when the cache has none; its errors pass through. Raises ``OSError`` if the cache
        cannot be written.
        """
        found = self._find(digest)
        if found is None:
            with self._locked(digest):
                found = self._find(digest)  # somebody else may have been faster
                if found is None:
                    found = self._add(digest, compile_to)
        return found

    def discard(self, digest: str) -> None:
        """Throw an entry away; harmless if there is none."""
        for path in (self._path(digest, "sum"), self._path(digest, "cwasm")):
            with suppress(FileNotFoundError):
                os.unlink(path)

    def _path(self, digest: str, suffix: str) -> str:
        return os.path.join(self._entries, f"{digest}.{suffix}")

    def _find(self, digest: str) -> int | None:
        """The entry, if it is there and undamaged. Marks it as used."""
        record = self._path(digest, "sum")
        try:
            with open(record, encoding="ascii", errors="replace") as file:
                expected = file.read(65).strip()
            fd = os.open(self._path(digest, "cwasm"), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if self.digests.of(fd) != expected:
            os.close(fd)
            return None
        with suppress(FileNotFoundError):
            os.utime(record)
        return fd

    def _add(self, digest: str, compile_to: Callable[[int], None]) -> int:
        self.discard(digest)  # what is there is damaged
        path = self._path(digest, "cwasm")
        temporary = f"{path}.{os.getpid()}.tmp"
        fd = os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            compile_to(fd)
            self._record(digest, self.digests.of(fd))
            os.rename(temporary, path)
        except BaseException:
            os.close(fd)
            os.unlink(temporary)
            raise
        os.close(fd)
        self._sweep()
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def _record(self, digest: str, sum_of_entry: str) -> None:
        path = self._path(digest, "sum")
        temporary = f"{path}.{os.getpid()}.tmp"
        with open(os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(sum_of_entry)
        os.rename(temporary, path)

    @contextmanager
    def _locked(self, digest: str) -> Iterator[None]:
        """One compiler per module at a time; a dead one's lock goes with it. Waits as long as the other takes."""
        fd = os.open(os.path.join(self._locks, digest[:2]), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _sweep(self) -> None:
        """Remove leftovers, old records and, beyond the limit, the entries that were not used for longest."""
        now = time.time()
        entries: list[tuple[float, int, str]] = []
        for path, info in self._files():
            age = now - info.st_mtime
            if path.endswith(".tmp"):
                stale = age > _TEMPORARY_SECONDS
            elif os.path.dirname(path).endswith("/digests"):
                stale = age > _RECORD_SECONDS
            else:
                stale = False
            if stale:
                _remove(path)
            elif path.endswith(".cwasm"):
                entries.append((_last_use(path, info), info.st_size, path))
        total = sum(size for _, size, _ in entries)
        entries.sort()
        for _, size, path in entries[:-1]:  # the newest one is in use at this moment
            if total <= self._max_bytes:
                break
            _remove(path)
            _remove(path.removesuffix("cwasm") + "sum")
            total -= size

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        for directory, _, names in os.walk(self._root):
            for name in names:
                path = os.path.join(directory, name)
                with suppress(FileNotFoundError):
                    yield path, os.stat(path, follow_symlinks=False)


def _last_use(path: str, info: os.stat_result) -> float:
    try:
        return os.stat(path.removesuffix("cwasm") + "sum").st_mtime
    except FileNotFoundError:
        return info.st_mtime


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)
