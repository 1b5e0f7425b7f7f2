"""Removing what the agent has made in its directories (``shutil`` would cost a guest's PID 1 several modules)."""

from __future__ import annotations

import os
from contextlib import suppress


def remove_tree(path: str) -> None:
    """Remove a directory with all in it, following no link. Harmless when it is gone; raises ``OSError`` otherwise.

    Enters no mount: a mount point below it makes this fail with EBUSY before anything behind it is touched.
    """
    try:
        device = os.lstat(path).st_dev
    except FileNotFoundError:
        return
    _remove_below(path, device)
    with suppress(FileNotFoundError):
        os.rmdir(path)


def _remove_below(path: str, device: int) -> None:
    with os.scandir(path) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            if not os.path.ismount(entry.path) and entry.stat(follow_symlinks=False).st_dev == device:
                _remove_below(entry.path, device)
            os.rmdir(entry.path)
