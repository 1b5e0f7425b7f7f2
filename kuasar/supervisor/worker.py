"""One worker as supervisord sees it: the process ``sandbox:<id>``, its configuration and its life.

States are supervisord's, with our own rules for what follows a death::

                 spawn                    exit 0: the sandbox is gone
    (added) ------------> RUNNING ----------------------------------------> (forgotten)
                           |  ^ |                                                ^
            operator: stop |  | | any other end                                  | and the record is gone
                           v  | v                                                |
       STOPPED <-- STOPPING   +-- BACKOFF (until the pause is over; may be 0)    |
          |  |____________|______________________________________________________|
          +--> RUNNING (operator: start)

The class is a stock ``Subprocess`` whose fork, pipes and end are ours; everything else (signals, logs, rotation, tail,
events) is supervisord's own.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from supervisor import events
from supervisor.dispatchers import POutputDispatcher
from supervisor.options import ProcessConfig
from supervisor.process import Subprocess
from supervisor.states import ProcessStates, SupervisorStates, getProcessStateDescription

from kuasar.core.config import Config
from kuasar.core.spawn import Exit
from kuasar.supervisor.launcher import Launcher
from kuasar.supervisor.policy import RestartPolicy
from kuasar.supervisor.records import record_path

if TYPE_CHECKING:
    from kuasar.supervisor.group import SandboxGroup

STOP_SECONDS = 10
"""How long a worker has between SIGTERM and SIGKILL."""


class WorkerOutput(POutputDispatcher):  # type: ignore[misc]  # supervisor has no types
    """What reads a worker's log pipe. Deaf once its process is reaped.

    supervisord may still call it in the same pass, when the number of its pipe is already another worker's.
    """

    def handle_read_event(self) -> None:
        """Move what is there into the log file."""
        if not self.closed:
            super().handle_read_event()


class WorkerConfig(ProcessConfig):  # type: ignore[misc]  # supervisor has no types
    """The program ``<id>``; lives in memory only."""

    def __init__(self, options: Any, sandbox: str, config: Config, launcher: Launcher) -> None:
        super().__init__(
            options,
            name=sandbox,
            command=launcher.command(sandbox),
            stdout_logfile=f"{config.sandbox_log_dir}/{sandbox}.log",
            stdout_logfile_maxbytes=config.supervisor.log_max_bytes,
            stdout_logfile_backups=config.supervisor.log_backups,
            redirect_stderr=True,
            autostart=False,  # starting and restarting is this module's business
            autorestart=False,
            startsecs=0,
            startretries=0,
            exitcodes=[0],
            stopsignal=15,
            stopwaitsecs=STOP_SECONDS,
            stopasgroup=False,
            killasgroup=False,
            uid=None,
            directory=None,
            umask=None,
            priority=999,
            stdout_capture_maxbytes=0,
            stdout_events_enabled=False,
            stdout_syslog=False,
            stderr_logfile=None,
            stderr_logfile_maxbytes=0,
            stderr_logfile_backups=0,
            stderr_capture_maxbytes=0,
            stderr_events_enabled=False,
            stderr_syslog=False,
            environment={},
            serverurl=None,
        )
        self.record = record_path(config, sandbox)
        self.launcher = launcher

    def make_process(self, group: SandboxGroup) -> Worker:
        """The process of this configuration, not started."""
        return Worker(self, group)

    def make_dispatchers(self, proc: Worker) -> tuple[dict[int, WorkerOutput], dict[str, int | None]]:
        """One pipe for output and error; standard input is /dev/null. Two descriptors a worker, all told."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        try:
            os.set_blocking(read_end, False)
            output = WorkerOutput(proc, events.ProcessCommunicationStdoutEvent, read_end)
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        except BaseException:
            os.close(read_end)
            os.close(write_end)
            raise
        pipes: dict[str, int | None] = dict.fromkeys(("stdin", "stderr", "child_stderr"))
        pipes |= {"stdout": read_end, "child_stdin": null, "child_stdout": write_end}
        return {read_end: output}, pipes


class ForkingOptions:
    """supervisord's options as one process sees them: all the same, except how to fork."""

    def __init__(self, options: Any, fork: Callable[[Callable[[], int]], int]) -> None:
        """``fork`` is given the stock one."""
        self._options = options
        self._fork = fork

    def __getattr__(self, name: str) -> Any:
        return getattr(self._options, name)

    def fork(self) -> int:
        """Called by the stock ``spawn``."""
        return self._fork(self._options.fork)


class Worker(Subprocess):  # type: ignore[misc]  # supervisor has no types
    """The process ``sandbox:<id>``."""

    delay: float

    def __init__(self, config: WorkerConfig, group: SandboxGroup) -> None:
        config.options = ForkingOptions(config.options, self.fork)
        super().__init__(config)
        self.group = group
        self.restarts = 0
        """How often it was started again without an operator."""
        self.last_exit = ""
        """In words; empty before the first end."""
        self.started_by = ""
        """``zygote`` or ``exec``."""
        self.removing = False
        """Whether it is to be forgotten at its end, whatever that is."""
        self._policy = RestartPolicy()
        self._pause: float | None = None
        self._started = 0.0

    @property
    def sandbox(self) -> str:
        """The id."""
        name: str = self.config.name
        return name

    @property
    def stopped_by_operator(self) -> bool:
        """Whether somebody has stopped it by hand and not started it since."""
        stopped = self.state in (ProcessStates.STOPPING, ProcessStates.STOPPED)
        return bool(stopped and self.administrative_stop and not self.removing)

    @property
    def state_name(self) -> str:
        """supervisord's word for the state."""
        name: str = getProcessStateDescription(self.state)
        return name

    # -- starting --------------------------------------------------------------------------------------------------

    def spawn(self) -> int | None:
        """Start it; gives the pid, or None with ``spawnerr`` set and another attempt due."""
        if self.state in (ProcessStates.STOPPED, ProcessStates.FATAL):
            self._policy.forgive()
        self._started = time.monotonic()
        pid: int | None = super().spawn()
        if pid:
            self.change_state(ProcessStates.RUNNING)  # there is no start-up time; the policy looks at how long it lived
        return pid

    def fork(self, exec_fork: Any) -> int:
        """Called by the stock ``spawn`` through the options."""
        pid, self.started_by = self.config.launcher.fork(self.sandbox, self.pipes, exec_fork)
        return int(pid)

    def hold(self, seconds: float, why: str) -> None:
        """Be started when ``seconds`` are over or :meth:`release` is called. Only before the first start."""
        self._pause = seconds
        self.change_state(ProcessStates.BACKOFF)
        self.spawnerr = why

    def release(self) -> None:
        """End a :meth:`hold`; harmless for a worker that was started already."""
        if self.state == ProcessStates.BACKOFF and not self.laststart:
            self.delay = 0

    def transition(self) -> None:
        """What the loop calls once per pass: start it if it is due; the rest is stock."""
        if self.state != ProcessStates.BACKOFF:
            super().transition()
            return
        now = time.time()
        self._check_and_adjust_for_system_clock_rollback(now)
        if now >= self.delay and not self._is_shutting_down() and self.group.may_spawn():
            self.restarts += bool(self.laststart)
            self.spawn()

    def change_state(self, new_state: Any, expected: bool = True) -> Any:
        """The stock setter, with our pause instead of a growing number of seconds."""
        changed = super().change_state(new_state, expected)
        if new_state == ProcessStates.BACKOFF:
            pause = self._policy.died(0.0) if self._pause is None else self._pause
            self._pause = None
            self.delay = time.time() + pause
            self.backoff = math.ceil(pause)  # the stock check for a clock that was set back takes it for seconds
        return changed

    # -- ending ----------------------------------------------------------------------------------------------------

    def finish(self, pid: int, sts: int) -> None:
        """It was reaped: forget it, leave it stopped, or start it again."""
        lived = time.monotonic() - self._started
        stopping = self.killing
        outputs = list(self.dispatchers.values())
        super().finish(pid, sts)
        for output in outputs:
            output.closed = True
        ended = Exit.from_wait_status(sts)
        self.last_exit = ended.words
        if self._is_gone(ended, stopping):
            self.config.options.logger.info(f"sandbox:{self.sandbox}: the sandbox is gone, its worker is forgotten")
            self.group.forget(self)
        elif not stopping and not self._is_shutting_down():
            self._start_again(f"{_past(ended)} after {lived:.1f} s", self._policy.died(lived))

    def _is_gone(self, ended: Exit, stopping: bool) -> bool:
        if self.removing:
            return True
        # told to stop, 0 may just be politeness: then the record decides
        return ended == Exit(0) and not (stopping and os.path.exists(self.config.record))

    def _start_again(self, words: str, pause: float) -> None:
        score = self._policy.short_lives
        loop = f" ({score} short lives in a row)" if score > 1 else ""
        when = f"in {pause:.1f} s" if pause else "at once"
        self._note(f"the worker {words}{loop}; it is started again {when}")
        if not pause and self.group.may_spawn():
            self.restarts += 1
            self.spawn()
            return
        self._pause = pause
        self.change_state(ProcessStates.BACKOFF)
        self.spawnerr = f"{words}{loop}, started again {when}"

    def _note(self, text: str) -> None:
        """Into supervisord's log and into the worker's own, where whoever tails it will look."""
        self.config.options.logger.warn(f"sandbox:{self.sandbox}: {text}")
        with suppress(OSError), open(self.config.stdout_logfile, "ab") as file:
            file.write(f"supervisor: {text}\n".encode())

    def _is_shutting_down(self) -> bool:
        return bool(self.config.options.mood <= SupervisorStates.RESTARTING)


def _past(ended: Exit) -> str:
    return f"was {ended.words}" if ended.signal else ended.words
