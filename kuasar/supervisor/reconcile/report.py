"""What a round has found, in numbers for those who watch the node (``core/reconciled.py``)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence

from kuasar.core import cgroup, records
from kuasar.core.config import Config
from kuasar.core.reconciled import Look, write
from kuasar.supervisor.reconcile.apply import Outcome
from kuasar.supervisor.reconcile.plan import Action, Facts

_KINDS = {
    "adopt": "sandbox-without-worker",
    "retire": "worker-without-record",
    "kill": "process",
    "destroy-cgroup": "cgroup",
    "unmount": "mount",
    "drop": "keeper-entry",
    "set-aside": "damaged-record",
}
_REMOVED = "remove"
LEAKS = (*_KINDS.values(), "directory", "log", "template")
"""Everything that may leak."""


def tell(config: Config, facts: Facts, outcomes: Sequence[Outcome], dry_run: bool) -> None:
    """Write down what one round has found and done."""
    look = _look(config, facts, outcomes, dry_run)
    steps = [] if dry_run else [(outcome.action.verb, "failed" if outcome.error else "done") for outcome in outcomes]
    write(config.state_dir, look, steps)


def _look(config: Config, facts: Facts, outcomes: Iterable[Outcome], dry_run: bool) -> Look:
    summaries = records.read_all(config.sandboxes_dir)
    cgroups = [path for summary in summaries for path in summary.cgroups]
    running = [summary for summary in summaries if summary.state in ("starting", "ready", "stopping")]
    left = Counter(dict.fromkeys(LEAKS, 0))
    left.update(_kind_of(outcome.action) for outcome in outcomes if dry_run or outcome.error)
    return Look(
        at=time.time(),
        recorded={"worker": len(summaries), "machine": len(running), "cgroup": len(cgroups)},
        alive={
            "worker": len(facts.workers or ()),
            "machine": len({process.sandbox for process in facts.processes}),
            "cgroup": sum(cgroup.exists(path) for path in cgroups) + len(facts.cgroups),
        },
        leaked=dict(left),
    )


def _kind_of(action: Action) -> str:
    if action.verb != _REMOVED:
        return _KINDS[action.verb]
    if not action.name:
        return "directory"
    return "log" if action.sandbox else "template"
