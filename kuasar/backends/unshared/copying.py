"""Copies a file or a directory tree of the host into the memory of a machine, over the agent's channel."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from kuasar.core import log
from kuasar.core.errors import Unimplemented, wrap

AskAgent = Callable[[str, Mapping[str, Any], float | None], Awaitable[Any]]
MOST_BYTES = 32 * 1024 * 1024
"""Of one source: it is memory of the guest."""
MOST_ENTRIES = 8192
_CHUNK_BYTES = 1024 * 1024
_BATCH_BYTES = 4 * 1024 * 1024
_ENTRY_BYTES = 256
"""What an entry weighs on the channel beside its data, roughly."""


async def copy_tree(ask_agent: AskAgent, source: str, name: str, field: str, deadline: float | None) -> None:
    """Make ``source``, a directory or file, appear as ``name`` below the guest's directory of copies, with owners,
    modes and symbolic links as they are. What is neither file, directory nor link is left out. Raises Unimplemented
    naming ``field`` when it is too large; what was copied by then stays."""
    batch: list[dict[str, Any]] = []
    weight = total = count = 0
    try:
        for entry in _entries(source):
            size = len(entry.get("data", b""))
            total, count = total + size, count + (not entry.get("offset"))
            if total > MOST_BYTES or count > MOST_ENTRIES:
                raise _too_large(field, source)
            if weight + size > _BATCH_BYTES:
                await ask_agent("guest.write", {"name": name, "entries": batch}, deadline)
                batch, weight = [], 0
            batch.append(entry)
            weight += size + _ENTRY_BYTES
        await ask_agent("guest.write", {"name": name, "entries": batch}, deadline)
    except OSError as exc:
        raise wrap(exc, f"{field}: cannot copy {source}") from exc


def _too_large(field: str, source: str) -> Unimplemented:
    return Unimplemented(
        f"{field}: {source} has more than {MOST_BYTES >> 20} MiB or {MOST_ENTRIES} entries, too much to be copied into "
        "a machine that shares no directory with its host: use a block volume, or another engine",
        engine="firecracker",
        capability="shared-directory",
        field=field,
    )


def _entries(source: str) -> Iterator[dict[str, Any]]:
    """Everything of a tree as operation ``guest.write`` takes it, parents first."""
    yield from _entry(source, "", os.stat(source))
    if not os.path.isdir(source):
        return
    pending = [""]
    while pending:
        below = pending.pop()
        with os.scandir(f"{source}/{below}") as found:
            for each in sorted(found, key=lambda each: each.name):
                path = f"{below}/{each.name}" if below else each.name
                facts = each.stat(follow_symlinks=False)
                if stat.S_ISDIR(facts.st_mode):
                    pending.append(path)
                yield from _entry(f"{source}/{path}", path, facts)


def _entry(place: str, path: str, facts: os.stat_result) -> Iterator[dict[str, Any]]:
    entry: dict[str, Any] = {"path": path, "mode": facts.st_mode, "uid": facts.st_uid, "gid": facts.st_gid}
    if stat.S_ISDIR(facts.st_mode):
        yield entry
    elif stat.S_ISLNK(facts.st_mode):
        yield {**entry, "link": os.readlink(place)}
    elif stat.S_ISREG(facts.st_mode):
        yield from _pieces(place, entry, follow=not path)
    else:
        log.info("not copied: it is neither file, directory nor link", path=place)


def _pieces(place: str, entry: dict[str, Any], *, follow: bool) -> Iterator[dict[str, Any]]:
    """A file in pieces; an empty one is one, too. Only the source itself may be reached by a link."""
    fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    try:
        offset, data = 0, os.pread(fd, _CHUNK_BYTES, 0)
        yield {**entry, "offset": 0, "data": data}
        while len(data) == _CHUNK_BYTES:
            offset += len(data)
            data = os.pread(fd, _CHUNK_BYTES, offset)
            yield {**entry, "offset": offset, "data": data}
    finally:
        os.close(fd)
