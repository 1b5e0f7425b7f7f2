"""The logs of sandboxes that are gone: the youngest are kept for whoever wonders why, the others go.

Of each that is the worker's log with its backups, what its agent or machine has written, and the machine's console. A
host makes and removes pods for years; without this its log directory would fill. Owned by the group; the files of
workers that are still there are never touched.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from contextlib import suppress

KEPT = 100
"""Finished sandboxes whose logs are kept."""
_ENDINGS = (".agent.log", ".console.log", ".log")
"""Of which the last one fits them all."""


class FinishedLogs:
    """The ids of finished sandboxes with a log in ``directory``, oldest first."""

    def __init__(self, directory: str, wanted: Container[str], kept: int = KEPT) -> None:
        """Take over what earlier lives left: every log of a sandbox that is not in ``wanted``."""
        self._directory = directory
        self._kept = kept
        found: dict[str, float] = {}
        for sandbox, mtime in self._scan():
            if sandbox not in wanted:
                found[sandbox] = max(mtime, found.get(sandbox, 0.0))
        self._finished = dict.fromkeys(sorted(found, key=lambda sandbox: (found[sandbox], sandbox)))
        self._prune()

    def _scan(self) -> Iterator[tuple[str, float]]:
        with os.scandir(self._directory) as entries:
            for entry in entries:
                ending = next((ending for ending in _ENDINGS if entry.name.endswith(ending)), "")
                if ending:
                    with suppress(FileNotFoundError):
                        yield entry.name.removesuffix(ending), entry.stat().st_mtime

    def started(self, sandbox: str) -> None:
        """``sandbox`` has a worker (again): its log is in use. Harmless when it was not finished."""
        self._finished.pop(sandbox, None)

    def finished(self, sandbox: str) -> None:
        """``sandbox`` is gone; the oldest log beyond the limit is removed."""
        self._finished.pop(sandbox, None)
        self._finished[sandbox] = None
        self._prune()

    def _prune(self) -> None:
        while len(self._finished) > self._kept:
            sandbox = next(iter(self._finished))
            del self._finished[sandbox]
            for ending in _ENDINGS[:-1]:
                with suppress(OSError):
                    os.unlink(f"{self._directory}/{sandbox}{ending}")
            path, number = f"{self._directory}/{sandbox}.log", 0
            with suppress(OSError):  # ends with the first backup that is not there; a log is not worth a failure
                os.unlink(path)
                while True:
                    number += 1
                    os.unlink(f"{path}.{number}")
