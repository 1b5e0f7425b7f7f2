"""The file that a sandbox's agent, VMM and helpers write to, kept small: they hold it open for their whole life, so it
cannot be moved away. All of them append, so it can be cut: beyond the limit its older half goes."""

from __future__ import annotations

import os
from contextlib import suppress

from kuasar.core.aio import Loop

_LOOK_SECONDS = 10.0


async def keep_small(loop: Loop, path: str, limit: int) -> None:
    """See to it that ``path`` has ``limit`` bytes at most, give or take what comes within some seconds. Never returns;
    returns at once for a limit of 0, which is none."""
    while limit:
        with suppress(OSError):
            if os.stat(path).st_size > limit:
                halve(path, limit)
        await loop.sleep(_LOOK_SECONDS)


def halve(path: str, limit: int) -> None:
    """Leave the last ``limit // 2`` bytes of ``path``, from the beginning of a line. A line that is written at this
    very moment may be lost."""
    with open(path, "r+b") as file:
        file.seek(-(limit // 2), os.SEEK_END)
        kept = file.read()
        os.truncate(path, 0)
    with open(path, "ab", buffering=0) as file:  # at the end of what has come meanwhile
        file.write(kept[kept.find(b"\n") + 1 :])
