"""systemd, through ``systemctl``; and nothing, where there is none."""

from __future__ import annotations

import os
from typing import Protocol

from kuasar.core.errors import BackendFailed
from kuasar.core.programs import Output, run_program

KUASAR = "kuasar.service"
_SECONDS = 180.0


class Services(Protocol):
    """What starts and stops services on the node. Its methods raise BackendFailed with what the service says."""

    present: bool
    """Whether there is any such thing; if not, nothing is called."""

    def reload(self) -> None:
        """Unit files have changed."""

    def is_active(self, unit: str) -> bool:
        """Whether it runs."""

    def start(self, unit: str) -> None:
        """Start it and wait until it is ready; harmless if it runs."""

    def restart(self, unit: str) -> None:
        """Stop it, start it, and wait until it is ready."""

    def stop(self, unit: str) -> None:
        """Stop it; harmless if it does not run."""


class Systemd:
    """The systemd that is PID 1 here."""

    def __init__(self, root: str, wanted: bool = True) -> None:
        """Not present in a scratch root, where it is not PID 1, and where it is not ``wanted``."""
        self.present = wanted and root == "/" and os.path.isdir("/run/systemd/system")

    def reload(self) -> None:
        self._require("daemon-reload")

    def is_active(self, unit: str) -> bool:
        # "activating" counts: one that fails again and again is to be stopped, too
        return self._run("is-active", unit).out.strip() not in ("inactive", "failed", "unknown", "")

    def start(self, unit: str) -> None:
        self._require("start", unit)

    def restart(self, unit: str) -> None:
        self._run("reset-failed", unit)  # else a start limit that was hit before would refuse it
        self._require("restart", unit)

    def stop(self, unit: str) -> None:
        done = self._run("stop", unit)
        if done.code and "not loaded" not in done.err:
            raise self._failure(done, "stop", unit)

    def _require(self, *words: str) -> None:
        done = self._run(*words)
        if done.code:
            raise self._failure(done, *words)

    def _run(self, *words: str) -> Output:
        return run_program(["systemctl", *words], _SECONDS)

    def _failure(self, done: Output, *words: str) -> BackendFailed:
        said = done.err.strip()
        if len(words) == 2:
            status = self._run("status", "--no-pager", "--full", "--lines=12", words[1])
            said += f"\n{status.out.strip()[-3000:]}"
        return BackendFailed(f"systemctl {' '.join(words)}: {said}")
