"""Taking the steps of a plan. Each is tried on its own: one that fails is reported and keeps no other from being taken.

Every step is harmless to repeat, so that one that failed, or whose reconciler died, is simply taken again next time.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from kuasar.agent import kernel
from kuasar.core import cgroup, log, trees
from kuasar.core.aio import Loop
from kuasar.core.config import Config
from kuasar.core.errors import BackendFailed, KuasarError, wrap
from kuasar.core.process import open_process, send_signal
from kuasar.core.tombstones import Tombstone, bury, last_lines
from kuasar.supervisor.client import SupervisorClient
from kuasar.supervisor.keeper_client import Keeper
from kuasar.supervisor.reconcile.facts import damaged_dir
from kuasar.supervisor.reconcile.plan import Action
from kuasar.supervisor.records import record_path

_KILL_SECONDS = 5.0
_MOST_DAMAGED = 64


@dataclass(frozen=True)
class Outcome:
    """A step, and how it went."""

    action: Action
    error: str = ""
    """Empty: it is done."""

    def to_wire(self) -> dict[str, Any]:
        """As data for tools."""
        return {**asdict(self.action), "error": self.error}


class Reconciler:
    """Carries out plans for one state directory."""

    def __init__(self, config: Config, supervisord: SupervisorClient, keeper: Keeper) -> None:
        self._config = config
        self._supervisord = supervisord
        self._keeper = keeper
        self._verbs: dict[str, Callable[[Action], None]] = {
            "adopt": self._adopt,
            "retire": self._retire,
            "kill": self._kill,
            "destroy-cgroup": self._destroy_cgroup,
            "unmount": self._unmount,
            "drop": self._drop,
            "set-aside": self._set_aside,
            "remove": self._remove,
        }

    def apply(self, actions: Iterable[Action]) -> list[Outcome]:
        """Take the steps, with a line in the log for each."""
        actions = list(actions)
        self._bury_orphans(actions)
        return [self._take(action) for action in actions]

    def _take(self, action: Action) -> Outcome:
        facts = {"sandbox": action.sandbox or "none", "name": action.name or "directory", "reason": action.reason}
        try:
            if action.sandbox and action.verb not in ("adopt", "retire", "set-aside"):
                self._require_orphan(action.sandbox)
            self._verbs[action.verb](action)
        except (KuasarError, OSError) as exc:
            error = wrap(exc, f"{action.verb} {action.name}").message
            log.error("could not be reconciled", verb=action.verb, error=error, **facts)
            return Outcome(action, error)
        log.info("reconciled", verb=action.verb, **facts)
        return Outcome(action)

    def _require_orphan(self, sandbox: str) -> None:
        """A record that has appeared since we looked makes the sandbox somebody's."""
        if os.path.exists(record_path(self._config, sandbox)):
            raise BackendFailed(f"sandbox {sandbox} has a record now")

    def _bury_orphans(self, actions: list[Action]) -> None:
        """Who finds a pod gone shall find out why. Before its logs are removed."""
        for sandbox in sorted({action.sandbox for action in actions if action.verb == "kill"}):
            logs = f"{self._config.sandbox_log_dir}/{sandbox}"
            reason = next(action.reason for action in actions if action.sandbox == sandbox and action.verb == "kill")
            tombstone = Tombstone(
                sandbox=sandbox,
                namespace="",
                engine="",
                pod="",
                phase="reconciled",
                reason=f"ended by the reconciler: {reason}",
                exit_status=137,
                created_at=0,
                started_at=0,
                ended_at=time.time_ns(),
                console=last_lines(f"{logs}.console.log"),
                log=last_lines(f"{logs}.agent.log"),
            )
            bury(self._config.state_dir, tombstone)

    # -- the verbs -------------------------------------------------------------------------------------------------

    def _adopt(self, action: Action) -> None:
        self._supervisord.add(action.sandbox)

    def _retire(self, action: Action) -> None:
        self._supervisord.remove(action.sandbox)

    def _kill(self, action: Action) -> None:
        pidfd = open_process(int(action.name), action.started)
        if pidfd is None:
            return
        try:
            send_signal(pidfd, signal.SIGKILL)
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(_KILL_SECONDS * 1000):
                raise BackendFailed(f"process {action.name} does not die within {_KILL_SECONDS:g} s")
        finally:
            os.close(pidfd)

    def _destroy_cgroup(self, action: Action) -> None:
        loop = Loop()
        loop.run(cgroup.destroy(loop, action.name))

    def _unmount(self, action: Action) -> None:
        with suppress(FileNotFoundError):
            try:
                kernel.umount(action.name, kernel.UMOUNT_NOFOLLOW)
            except OSError as exc:
                holders = trees.holders_of(action.name)
                raise BackendFailed(
                    f"cannot unmount {action.name}: {exc.strerror}"
                    + (f"; used by {', '.join(holders)}" if holders else "")
                ) from exc

    def _drop(self, action: Action) -> None:
        self._keeper.drop(action.name)

    def _set_aside(self, action: Action) -> None:
        """Where it can be looked at when everything else of the sandbox is gone; the oldest go when there are many."""
        aside = damaged_dir(self._config)
        os.makedirs(aside, mode=0o700, exist_ok=True)
        kept = sorted(os.listdir(aside), key=lambda name: os.stat(f"{aside}/{name}").st_mtime)
        for name in kept[: max(0, len(kept) - _MOST_DAMAGED + 1)]:
            os.unlink(f"{aside}/{name}")
        with suppress(FileNotFoundError):
            os.replace(action.name, f"{aside}/{action.sandbox}.msgpack")

    def _remove(self, action: Action) -> None:
        if not action.name:
            trees.remove_tree(f"{self._config.sandboxes_dir}/{action.sandbox}")
        elif os.path.isdir(action.name):
            shutil.rmtree(action.name)
        else:
            with suppress(FileNotFoundError):
                os.unlink(action.name)
