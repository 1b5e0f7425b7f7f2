"""The group ``sandbox``: all workers, in supervisord's memory only.

It belongs to the plugin: no configuration file names it, ``reread`` and ``update`` do not see it. It exists, empty or
not, as long as the Supervisor object does.
"""

from __future__ import annotations

from typing import Any

from supervisor.options import ProcessGroupConfig
from supervisor.process import ProcessGroup

from kuasar.core.config import Config
from kuasar.supervisor.launcher import Launcher
from kuasar.supervisor.logs import FinishedLogs
from kuasar.supervisor.worker import Worker, WorkerConfig

NAME = "sandbox"
PRIORITY = 500
"""Stopped after the gateway, before the zygote (the higher, the sooner)."""
SPAWNS_PER_PASS = 8
"""Starts in one pass of supervisord's loop: when hundreds are due it still answers in between."""


class SandboxGroupConfig(ProcessGroupConfig):  # type: ignore[misc]  # supervisor has no types
    """The configuration of the group, which makes it."""

    def __init__(self, options: Any, config: Config, launcher: Launcher, logs: FinishedLogs) -> None:
        super().__init__(options, NAME, PRIORITY, [])
        self.config = config
        self.launcher = launcher
        self.logs = logs

    def make_group(self) -> SandboxGroup:
        """An empty group."""
        return SandboxGroup(self)


class SandboxGroup(ProcessGroup):  # type: ignore[misc]  # supervisor has no types
    """The workers by sandbox id."""

    config: SandboxGroupConfig
    processes: dict[str, Worker]

    def __init__(self, config: SandboxGroupConfig) -> None:
        super().__init__(config)
        self._spawns_left = SPAWNS_PER_PASS

    def add(self, sandbox: str) -> Worker:
        """A new worker, not started. The id is valid and not in the group."""
        config = WorkerConfig(self.config.options, sandbox, self.config.config, self.config.launcher)
        worker = self.processes[sandbox] = config.make_process(self)
        self.config.process_configs.append(config)
        self.config.logs.started(sandbox)
        return worker

    def forget(self, worker: Worker) -> None:
        """Drop a worker that does not run; harmless when it is dropped already."""
        if self.processes.get(worker.sandbox) is worker:
            del self.processes[worker.sandbox]
            self.config.logs.finished(worker.sandbox)
            self.config.process_configs[:] = [
                known for known in self.config.process_configs if known is not worker.config
            ]

    def release(self) -> None:
        """Start the workers that are held."""
        for worker in list(self.processes.values()):
            worker.release()

    def may_spawn(self) -> bool:
        """Whether one more start fits into this pass of the loop; counts it."""
        self._spawns_left -= 1
        return self._spawns_left >= 0

    def transition(self) -> None:
        """Called once per pass of the loop."""
        self._spawns_left = SPAWNS_PER_PASS
        for worker in list(self.processes.values()):
            worker.transition()

    def before_remove(self) -> None:
        """An operator removes the whole group: its programs go with it."""
        self.config.process_configs.clear()
