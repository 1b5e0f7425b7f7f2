"""What is below a directory: mounts and whoever uses them; removing a tree without ever following into a mount.

A sandbox directory may hold bind mounts of users' volumes. Deleting such a tree file by file would delete the volumes,
so nothing is deleted before the last mount below is gone.
"""

from __future__ import annotations

import os
import re
import shutil

from kuasar.core.errors import BackendFailed, wrap

_OCTAL = re.compile(r"\\([0-7]{3})")
_MOST_HOLDERS = 5


def mounts_below(top: str) -> list[str]:
    """Mount points at or below ``top``, in the order to unmount them."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            path = line.split(" ", 5)[4]
            if "\\" in path:
                path = _OCTAL.sub(lambda match: chr(int(match[1], 8)), path)
            if path == top or path.startswith(f"{top}/"):
                found.append(path)
    return found[::-1]


def holders_of(top: str) -> list[str]:
    """Processes that stand in ``top`` or have something below it open, in words; at most a few of them."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid() and _holds(f"/proc/{entry}", top):
            found.append(f"process {entry} ({_name_of(entry)})")
            if len(found) == _MOST_HOLDERS:
                break
    return found


def _holds(process: str, top: str) -> bool:
    try:
        links = [f"{process}/cwd", f"{process}/root", *(f"{process}/fd/{fd}" for fd in os.listdir(f"{process}/fd"))]
    except OSError:  # it has ended
        return False
    return any(_is_below(link, top) for link in links)


def _is_below(link: str, top: str) -> bool:
    try:
        path = os.readlink(link)
    except OSError:
        return False
    return path == top or path.startswith(f"{top}/")


def _name_of(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "gone"


def blocked_by(top: str) -> str:
    """Why ``top`` cannot be freed, in words: mounts below it and processes that use it; empty if nothing is seen."""
    mounts, holders = mounts_below(top), holders_of(top)
    parts = [f"mounted there: {', '.join(mounts[:_MOST_HOLDERS])}"] if mounts else []
    return "; ".join(parts + ([f"used by {', '.join(holders)}"] if holders else []))


def remove_tree(top: str) -> None:
    """Remove a directory and all in it; harmless when it is gone. Raises :class:`BackendFailed` naming what blocks, and
    then has removed nothing if that is a mount."""
    if mounts_below(top):
        raise BackendFailed(f"{top} cannot be removed: {blocked_by(top)}")
    try:
        shutil.rmtree(top)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise wrap(exc, f"{top} cannot be removed") from exc
