"""What is changed in the running supervisord, all of it here, and why.

Stock supervisord 4.3 is right for a handful of programs that rarely die. For one worker per sandbox it lacks:

- it does not wake on SIGCHLD (``select.poll`` is restarted after the signal, PEP 475), so a death is noticed up to
  2 s late: :class:`WakingPoller`;
- its timers tick once a second, its own back-off grows without limit: :func:`make_deadlines`;
- it calls every orphan it reaps "unknown": :func:`make_reaper`, quiet about the orphans of a subreaper;
- what it starts survives it when it is killed, and may miss a signal that comes early: :func:`make_fork`;
- ``update`` removes groups that no file knows: :func:`make_diff`.

Each applies to one Supervisor object and ends with it: after ``reload`` there is a new one, and a new plugin.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from supervisor.states import ProcessStates

from kuasar.core.spawn import Exit
from kuasar.supervisor.clone import HANDLED_SIGNALS, set_parent_death_signal
from kuasar.supervisor.policy import pause_after


class WakingPoller:
    """supervisord's poller, which also returns when a signal arrives and when ``next_deadline`` (``time.time``) is due.

    Owns a pipe that Python's signal handler writes to. Every method that is not here is the inner poller's.
    """

    def __init__(
        self, inner: Any, next_deadline: Callable[[], float | None], beat: Callable[[float], float] | None = None
    ) -> None:
        """``beat`` is called in every pass with ``time.monotonic`` and says after how many seconds it wants to be
        called again."""
        self._inner = inner
        self._next_deadline = next_deadline
        self._beat = beat
        self._woken = True  # nor does the first pass wait: programs are to be started
        self._wake_r, self._wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        inner.register_readable(self._wake_r)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def poll(self, timeout: float) -> tuple[list[int], list[int]]:
        """Wait at most ``timeout`` seconds, or less where a deadline comes first.

        The pass after a signal does not wait: what the loop learns at its end (a death) it acts upon in the next one.
        """
        deadline = self._next_deadline()
        if self._beat is not None:
            timeout = min(timeout, self._beat(time.monotonic()))
        if self._woken:
            timeout = 0
        elif deadline is not None:
            timeout = min(timeout, max(deadline - time.time(), 0.0))
        readable, writable = self._inner.poll(timeout)
        self._woken = self._wake_r in readable
        if self._woken:
            with suppress(BlockingIOError):
                os.read(self._wake_r, 65536)
            readable.remove(self._wake_r)
        return readable, writable

    def close(self) -> None:
        """The end of this Supervisor object: signals must not write to a number that the next one reuses."""
        signal.set_wakeup_fd(-1)
        os.close(self._wake_r)
        os.close(self._wake_w)
        self._inner.close()


def make_deadlines(supervisord: Any, ours: str) -> Callable[[], float | None]:
    """When the next process that is backing off is due (``time.time``).

    Also puts our policy in place of the stock one, which waits a second more after each life of under a second, for
    programs of the configuration file (gateway, zygote, keeper). The group ``ours`` has it already.
    """
    adjusted: dict[tuple[str, str], int] = {}

    def next_deadline() -> float | None:
        soonest: float | None = None
        for name, group in supervisord.process_groups.items():
            for program, process in group.processes.items():
                if process.state != ProcessStates.BACKOFF:
                    adjusted.pop((name, program), None)
                    continue
                if name != ours and adjusted.get((name, program)) != process.backoff:
                    process.delay += pause_after(process.backoff) - process.backoff
                    adjusted[name, program] = process.backoff
                soonest = process.delay if soonest is None else min(soonest, process.delay)
        return soonest

    return next_deadline


def make_reaper(supervisord: Any) -> Callable[..., None]:
    """A ``Supervisor.reap`` that is quiet about orphans and takes all that is there (the stock one stops at 100)."""
    options = supervisord.options

    def reap(once: bool = False, recursionguard: int = 0) -> None:
        while True:
            pid, status = options.waitpid()
            if not pid:
                return
            process = options.pidhistory.pop(pid, None)
            if process is not None:
                process.finish(pid, status)
            else:
                options.logger.debug(f"reaped an orphan: process {pid} {Exit.from_wait_status(status).words}")
            if once:
                return

    return reap


def make_fork() -> Callable[[], int]:
    """An ``options.fork`` whose child dies with supervisord, whatever it executes, and by the signals it is sent.

    The stock child keeps supervisord's handlers until it executes its program: a SIGTERM that comes before is noted in
    the child's memory and lost, and the stop takes until the SIGKILL.
    """

    def fork() -> int:
        parent = os.getpid()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for number in HANDLED_SIGNALS:
                    signal.signal(number, signal.SIG_DFL)
                set_parent_death_signal(parent)
            return pid
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    return fork


def make_diff(supervisord: Any, ours: str) -> Callable[[], tuple[list[Any], list[Any], list[Any]]]:
    """A ``Supervisor.diff_to_active`` that never speaks of the group ``ours``."""
    stock = supervisord.diff_to_active

    def diff_to_active() -> tuple[list[Any], list[Any], list[Any]]:
        added, changed, removed = ([config for config in configs if config.name != ours] for configs in stock())
        return added, changed, removed

    return diff_to_active
