"""The logs of workers whose sandbox is gone: the youngest are kept for whoever wonders why, the others go.

A host makes and removes pods for years; without this its log directory would fill. Owned by the group; the files of
workers that are still there are never touched.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from contextlib import suppress

KEPT = 100
"""Finished sandboxes whose logs are kept."""


class FinishedLogs:
    """The ids of finished sandboxes with a log in ``directory``, oldest first."""

    def __init__(self, directory: str, wanted: Container[str], kept: int = KEPT) -> None:
        """Take over what earlier lives left: every log of a sandbox that is not in ``wanted``."""
        self._directory = directory
        self._kept = kept
        found = [(mtime, sandbox) for sandbox, mtime in self._scan() if sandbox not in wanted]
        self._finished = dict.fromkeys(sandbox for _, sandbox in sorted(found))
        self._prune()

    def _scan(self) -> Iterator[tuple[str, float]]:
        with os.scandir(self._directory) as entries:
            for entry in entries:
                # the agent's log is the worker's business
                if entry.name.endswith(".log") and not entry.name.endswith(".agent.log"):
                    with suppress(FileNotFoundError):
                        yield entry.name.removesuffix(".log"), entry.stat().st_mtime

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
            path, number = f"{self._directory}/{sandbox}.log", 0
            with suppress(OSError):  # ends with the first backup that is not there; a log is not worth a failure
                os.unlink(path)
                while True:
                    number += 1
                    os.unlink(f"{path}.{number}")
