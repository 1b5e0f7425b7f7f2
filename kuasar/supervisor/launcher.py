"""How workers and the gateway come into being: cloned from the zygote, or, where that is away, executed as programs.

Called by supervisord between its own book-keeping before and after a fork, so all it has to give back is a pid (or 0 in
the child of a real fork, which then goes on to exec).
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from kuasar.core.config import Config
from kuasar.core.errors import Unavailable
from kuasar.supervisor import zygote_client

ZYGOTE_SECONDS = 1.0
"""supervisord's loop stands still while the zygote works (2 ms), so its patience is short."""
SHUN_SECONDS = 10.0
"""After a timeout the zygote is not asked for this long: one hung process must not stop the loop again and again."""


class Launcher:
    """Starts workers; one per Supervisor object."""

    def __init__(self, config: Config, logger: Any, program: tuple[str, ...] = ("-m", "kuasar.workers.main")) -> None:
        """``program`` is what the fallback executes, as arguments of this Python."""
        self._config = config
        self._logger = logger
        self._program = program
        self._shunned_until = 0.0

    def command(self, sandbox: str) -> str:
        """The command line of the fallback, quoted for a shell as supervisord wants it."""
        config = ("--config", self._config.path) if self._config.path else ()
        return shlex.join((sys.executable, *self._program, *config, "--sandbox", sandbox))

    def fork(self, sandbox: str, pipes: Mapping[str, int], exec_fork: Callable[[], int]) -> tuple[int, str]:
        """Give (pid, "zygote" or "exec"); pid 0 means: this is the child of ``exec_fork``, execute the command."""
        request = {"kind": "worker", "title": f"kuasar-worker {sandbox}", "args": {"sandbox": sandbox}, "flags": 0}
        return self._fork(f"sandbox:{sandbox}", request, pipes, exec_fork)

    def fork_gateway(self, process: Any, exec_fork: Callable[[], int]) -> int:
        """Give the pid of the gateway, whose supervisord ``process`` is being started, or 0 as :meth:`fork` does."""
        request = {"kind": "gateway", "title": "kuasar-gateway", "args": {}, "flags": 0}
        return self._fork("gateway", request, process.pipes, exec_fork)[0]

    def _fork(
        self, name: str, request: Mapping[str, Any], pipes: Mapping[str, int], exec_fork: Callable[[], int]
    ) -> tuple[int, str]:
        try:
            return self._clone(request, pipes), "zygote"
        except Unavailable as exc:
            if exc.data.get("hung"):
                self._shunned_until = time.monotonic() + SHUN_SECONDS
            self._logger.warn(f"{name}: {exc}; executing it instead")
        return exec_fork(), "exec"

    def _clone(self, request: Mapping[str, Any], pipes: Mapping[str, int]) -> int:
        if time.monotonic() < self._shunned_until:
            raise Unavailable("the zygote did not answer a moment ago")
        fds = [pipes["child_stdin"], pipes["child_stdout"], pipes["child_stdout"]]
        with zygote_client.fork(self._config.supervisor.zygote, request, fds, ZYGOTE_SECONDS) as clone:
            clone.commit()
            return clone.pid
