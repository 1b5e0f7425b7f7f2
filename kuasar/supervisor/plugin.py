"""supervisord's plugin: the XML-RPC namespace ``kuasar``, through which the gateway has workers added and removed.

In supervisord's configuration::

    [rpcinterface:kuasar]
    supervisor.rpcinterface_factory = kuasar.supervisor.plugin:make_rpcinterface
    config = /etc/kuasar/kuasar.toml

One object per Supervisor object. ``reload`` and SIGHUP stop all workers and make everything anew; then, as after a
restart of supervisord, the sandbox directories say which workers are wanted, and the sandboxes never noticed.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from functools import partial
from typing import Any

from supervisor import events
from supervisor.states import SupervisorStates
from supervisor.xmlrpc import Faults, RPCError

from kuasar.core import failpoints
from kuasar.core.config import Config, load
from kuasar.core.descriptors import require_room
from kuasar.core.errors import InvalidArgument, ResourceExhausted
from kuasar.core.failpoints import failpoint
from kuasar.core.ids import require_id
from kuasar.supervisor.clone import become_subreaper
from kuasar.supervisor.group import NAME, SandboxGroup, SandboxGroupConfig
from kuasar.supervisor.heart import Heart, make_heart
from kuasar.supervisor.launcher import Launcher
from kuasar.supervisor.logs import FinishedLogs
from kuasar.supervisor.loop import WakingPoller, make_deadlines, make_diff, make_fork, make_reaper
from kuasar.supervisor.records import find_recorded
from kuasar.supervisor.worker import ForkingOptions, Worker

ZYGOTE = "zygote"
GATEWAY = "gateway"
"""Names of programs in supervisord's configuration."""
HOLD_SECONDS = 5.0
"""How long replayed workers wait for the zygote to come up before they are executed the slow way."""
_DESCRIPTORS_PER_WORKER = 6
"""While it is started; two stay."""


class KuasarInterface:
    """The methods of the namespace; what starts with an underscore cannot be called from outside."""

    def __init__(
        self, supervisord: Any, config: Config, launcher: Launcher | None = None, heart: Heart | None = None
    ) -> None:
        """Take part in ``supervisord``; ``launcher`` starts the workers (default: zygote, else exec); ``heart`` tells
        systemd how we are."""
        self._supervisord = supervisord
        self._options = supervisord.options
        self._config = config
        failpoints.configure(config.failpoints_dir)
        if NAME in supervisord.process_groups:
            raise ValueError(f"the configuration file defines a group or program {NAME!r}, which is the plugin's own")
        for directory in (config.sandboxes_dir, config.sandbox_log_dir):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        wanted = list(find_recorded(config))
        logs = FinishedLogs(config.sandbox_log_dir, wanted)
        launcher = launcher or Launcher(config, self._options.logger)
        self._group_config = SandboxGroupConfig(self._options, config, launcher, logs)
        self._attach(heart)
        self._clone_gateway(launcher)
        self._replay(wanted)

    def _clone_gateway(self, launcher: Launcher) -> None:
        """Have the program ``gateway``, if there is one, cloned from the zygote: its imports take five times as long as
        all else that it does before it serves."""
        for name, group in self._supervisord.process_groups.items():
            process = group.processes.get(GATEWAY)
            if name != NAME and process is not None:
                fork = partial(launcher.fork_gateway, process)
                process.config.options = ForkingOptions(process.config.options, fork)

    def _attach(self, heart: Heart | None) -> None:
        supervisord, options = self._supervisord, self._options
        beat = None if heart is None else heart.beat
        options.poller = WakingPoller(options.poller, make_deadlines(supervisord, NAME), beat)
        if heart is not None:
            # to systemd a reload is no stop
            stop = lambda _: heart.stop(ends=options.mood < SupervisorStates.RESTARTING)  # noqa: E731
            events.subscribe(events.SupervisorStoppingEvent, stop)
        options.fork = make_fork()
        supervisord.reap = make_reaper(supervisord)
        supervisord.diff_to_active = make_diff(supervisord, NAME)
        # not now: turning into a daemon forks once more, and this is not inherited
        events.subscribe(events.SupervisorRunningEvent, lambda _: become_subreaper())
        events.subscribe(events.ProcessCommunicationStdoutEvent, self._on_announcement)

    def _group(self) -> SandboxGroup:
        """The group; made again if an operator has removed it (``supervisorctl remove sandbox``)."""
        self._supervisord.add_process_group(self._group_config)
        group: SandboxGroup = self._supervisord.process_groups[NAME]
        return group

    def _replay(self, sandboxes: list[str]) -> None:
        group = self._group()
        has_zygote = any(ZYGOTE in other.processes for other in self._supervisord.process_groups.values())
        for sandbox in sandboxes:
            group.add(sandbox).hold(HOLD_SECONDS if has_zygote else 0.0, "waiting for the zygote")
        if sandboxes:
            self._options.logger.info(f"{len(sandboxes)} sandbox directories found, their workers are wanted")

    def _on_announcement(self, event: Any) -> None:
        if event.process.config.name == ZYGOTE:
            self._options.logger.info("zygote announced itself")
            self._group().release()

    def _require_running(self) -> None:
        if self._options.mood < SupervisorStates.RUNNING:
            raise RPCError(Faults.SHUTDOWN_STATE, "supervisord is shutting down or reloading")

    def _find(self, sandbox: Any) -> Worker | None:
        try:
            return self._group().processes.get(require_id(sandbox, "id"))
        except InvalidArgument as exc:
            raise RPCError(Faults.BAD_ARGUMENTS, exc.message) from exc

    # the names are XML-RPC's, which are written like this in supervisord

    def addSandbox(self, sandbox: str) -> int:  # noqa: N802
        """See to it that sandbox ``sandbox`` has a worker; repeating is harmless.

        @param string id     the sandbox
        @return int pid      the worker's pid
        """
        self._require_running()
        failpoint("plugin.request")
        worker = self._find(sandbox)
        if worker is None:
            _require_descriptors(sandbox)
            worker = self._group().add(sandbox)
            if not worker.spawn():
                worker.group.forget(worker)
                raise RPCError(Faults.SPAWN_ERROR, f"{sandbox}: {worker.spawnerr}")
        if worker.removing:
            raise RPCError(Faults.STILL_RUNNING, f"{sandbox}: the worker before is still ending")
        if worker.stopped_by_operator:
            raise RPCError(Faults.NOT_RUNNING, f"{sandbox}: an operator has stopped the worker (supervisorctl start)")
        if not worker.pid:
            raise RPCError(Faults.ABNORMAL_TERMINATION, f"{sandbox}: the worker does not stay up: {worker.spawnerr}")
        failpoint("plugin.added")
        pid: int = worker.pid
        return pid

    def removeSandbox(self, sandbox: str) -> bool:  # noqa: N802
        """Stop the worker of ``sandbox`` (TERM, then KILL) and forget it; harmless when there is none.

        @param string id       the sandbox
        @return boolean gone   whether it is gone already; else it is as soon as it has ended
        """
        self._require_running()
        worker = self._find(sandbox)
        if worker is None:
            return True
        already, worker.removing = worker.removing, True
        if not worker.pid:
            worker.group.forget(worker)
            return True
        if not already and not worker.killing:
            worker.stop()
        return False

    def sandboxState(self, sandbox: str) -> dict[str, Any]:  # noqa: N802
        """What is known of the worker of ``sandbox``.

        @param string id        the sandbox
        @return struct state    see docs of kuasar.supervisor.client.WorkerState
        """
        self._require_running()
        worker = self._find(sandbox)
        if worker is None:
            raise RPCError(Faults.BAD_NAME, sandbox)
        return _describe(worker)

    def counts(self) -> dict[str, int]:
        """How many workers there are in each state: a short answer, also for thousands.

        @return struct counts   numbers by state
        """
        self._require_running()
        return dict(Counter(worker.state_name for worker in self._group().processes.values()))

    def list(self) -> Any:  # of dicts; `list` means this method here
        """The states of all workers, sorted by id.

        @return array states    as of sandboxState
        """
        self._require_running()
        workers = self._group().processes
        return [_describe(workers[sandbox]) for sandbox in sorted(workers)]

    def restarts(self) -> str:
        """How often each worker has been restarted after a crash, as one text: a list of hundreds of structures takes
        XML-RPC a tenth of a second at both ends.

        @return string json     restarts by sandbox
        """
        self._require_running()
        return json.dumps({sandbox: worker.restarts for sandbox, worker in self._group().processes.items()})


def _require_descriptors(sandbox: str) -> None:
    try:
        require_room(_DESCRIPTORS_PER_WORKER, f"a worker for sandbox {sandbox}")
    except ResourceExhausted as exc:
        raise RPCError(Faults.FAILED, exc.message) from exc


def _describe(worker: Worker) -> dict[str, Any]:
    return {
        "id": worker.sandbox,
        "state": worker.state_name,
        "pid": worker.pid,
        "restarts": worker.restarts,
        "stopped_by_operator": worker.stopped_by_operator,
        "started_by": worker.started_by,
        "started_at": float(worker.laststart),
        "last_exit": worker.last_exit,
        "description": worker.spawnerr or "",
        "log": worker.config.stdout_logfile,
    }


def make_rpcinterface(supervisord: Any, config: str | None = None) -> KuasarInterface:
    """What supervisord calls; the keys of the section arrive as keyword arguments."""
    loaded = load(config)
    heart = make_heart(os.environ, loaded.gateway.task_socket, loaded.gateway.socket)
    return KuasarInterface(supervisord, loaded, heart=heart)
