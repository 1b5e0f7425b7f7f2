"""``python -m kuasar.supervisor.reconcile``: once, by hand, or with ``--every`` as the service that supervisord starts.

Prints what it did, or with ``--dry-run`` would do, as text or ``--json``. Exits with 0 (all is in order now), 1 (a step
failed, or supervisord does not answer), 2 (usage).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence

from kuasar.core import log
from kuasar.core.config import Config, ConfigError, load
from kuasar.core.tombstones import prune
from kuasar.supervisor.client import SupervisorClient
from kuasar.supervisor.clone import set_parent_death_signal
from kuasar.supervisor.keeper_client import Keeper
from kuasar.supervisor.reconcile.apply import Outcome, Reconciler
from kuasar.supervisor.reconcile.facts import look
from kuasar.supervisor.reconcile.plan import Action, Facts, plan
from kuasar.supervisor.reconcile.report import tell

CONFIRM_SECONDS = 3.0
"""Between two looks that must agree before anything is done: what is just being made or removed is left alone."""


def confirmed_plan(
    config: Config, supervisord: SupervisorClient, keeper: Keeper, seconds: float
) -> tuple[Facts, list[Action]]:
    """The steps that two looks, ``seconds`` apart, both ask for. With nothing to do there is only one look."""
    facts = look(config, supervisord, keeper)
    first = plan(facts)
    if not first:
        return facts, first
    time.sleep(seconds)
    facts = look(config, supervisord, keeper)
    return facts, [action for action in plan(facts) if action in first]


def reconcile(
    config: Config, supervisord: SupervisorClient, keeper: Keeper, *, dry_run: bool, seconds: float
) -> tuple[Facts, list[Outcome]]:
    """One round."""
    facts, actions = confirmed_plan(config, supervisord, keeper, seconds)
    for name in facts.strangers:
        log.warning("not a sandbox, and left alone", path=f"{config.sandboxes_dir}/{name}")
    if dry_run:
        outcomes = [Outcome(action) for action in actions]
    else:
        prune(config.state_dir)
        outcomes = Reconciler(config, supervisord, keeper).apply(actions)
    tell(config, facts, outcomes, dry_run)
    return facts, outcomes


def _report(facts: Facts, outcomes: list[Outcome], dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "supervisord": facts.workers is not None,
        "workers": sorted(facts.workers or ()),
        "strangers": list(facts.strangers),
        "actions": [outcome.to_wire() for outcome in outcomes],
    }


def _print(facts: Facts, outcomes: list[Outcome], dry_run: bool) -> None:
    if facts.workers is None:
        print("supervisord does not answer: what is nobody's cannot be told")
    for outcome in outcomes:
        action = outcome.action
        words = f"{action.verb} {action.name or 'directory'}" + (
            f" of sandbox {action.sandbox}" if action.sandbox else ""
        )
        end = f" FAILED: {outcome.error}" if outcome.error else ""
        print(f"{'would ' if dry_run else ''}{words}: {action.reason}{end}")
    if not outcomes:
        print("nothing to do")


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m kuasar.supervisor.reconcile", description="Adopt what lives, free what nobody answers for."
    )
    parser.add_argument("--config", help="configuration file (default: /etc/kuasar/kuasar.toml)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("--json", action="store_true", help="print data instead of text")
    parser.add_argument(
        "--every", type=float, metavar="SECONDS", help="repeat for ever, ending with the parent process"
    )
    parser.add_argument(
        "--confirm", type=float, default=CONFIRM_SECONDS, metavar="SECONDS", help="pause between the two looks"
    )
    options = parser.parse_args(argv)
    try:
        config = load(options.config)
    except ConfigError as exc:
        print(exc, file=sys.stderr)
        return 2
    log.configure(config.log_level, form=config.log_format, process="reconciler")
    supervisord, keeper = SupervisorClient(config.supervisor.socket), Keeper(config.supervisor.keeper)
    if options.every is not None:
        _serve(config, supervisord, keeper, options)
    facts, outcomes = reconcile(config, supervisord, keeper, dry_run=options.dry_run, seconds=options.confirm)
    if options.json:
        print(json.dumps(_report(facts, outcomes, options.dry_run), indent=2))
    else:
        _print(facts, outcomes, options.dry_run)
    return 1 if facts.workers is None or any(outcome.error for outcome in outcomes) else 0


def _serve(config: Config, supervisord: SupervisorClient, keeper: Keeper, options: argparse.Namespace) -> None:
    """Rounds until killed. A round that fails in a way nobody thought of must not be the last."""
    set_parent_death_signal(os.getppid())
    while True:
        try:
            reconcile(config, supervisord, keeper, dry_run=options.dry_run, seconds=options.confirm)
        except Exception as exc:
            log.error("the round failed", error=repr(exc))
        time.sleep(options.every)


if __name__ == "__main__":
    sys.exit(main())
