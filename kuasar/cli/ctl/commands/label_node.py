"""``kuasarctl label-node``: tells Kubernetes which of our runtimes can be used on a node."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import click

from kuasar.cli.ctl.failures import Failed
from kuasar.cli.ctl.options import json_option
from kuasar.cli.ctl.output import line
from kuasar.core.errors import InvalidArgument, KuasarError, Unavailable
from kuasar.core.programs import run_program
from kuasar.install.contents import COMMANDS
from kuasar.install.kubernetes import ACCOUNT, Api
from kuasar.install.labels import changes, in_words, labels_of

ON_HOST = ("nsenter", "--target", "1", "--mount", "--uts", "--ipc", "--net", "--pid", "--", f"{COMMANDS}/kuasarctl")
"""From a privileged pod that sees the host's processes."""
_SECONDS = 300.0


@click.command("label-node")
@click.option("--node", required=True, envvar="NODE_NAME", metavar="NAME", help="The node (also $NODE_NAME).")
@click.option("--host", is_flag=True, help="From a privileged pod with the host's processes: ask the host's kuasarctl.")
@click.option("--every", type=click.FloatRange(min=1), metavar="SECONDS", help="Look again and again.")
@click.option("--account", default=ACCOUNT, metavar="DIR", help="Of the service account, with token and ca.crt.")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@json_option
@click.pass_context
def label_node(
    ctx: click.Context, node: str, host: bool, every: float | None, account: str, dry_run: bool, as_json: bool
) -> None:
    """Label this node of Kubernetes with the runtimes that can be used on it.

    kuasar.io/qemu=true for kuasar-qemu, and so on, as the RuntimeClasses select nodes. Labels of runtimes that cannot
    be used any more are removed, and all of them if a check of `doctor` fails. Runs in a pod, as its service account.
    """
    config = ctx.find_root().params.get("config")
    program = ON_HOST if host else (sys.executable, "-m", "kuasar.cli.ctl.main")
    argv = (*program, "--config", config) if config else program
    while True:
        try:
            difference = _once(argv, Api.of_pod(os.environ, account), node, dry_run)
            if as_json:
                line({"node": node, "dry_run": dry_run, "changes": difference})
            else:
                click.echo("".join(f"node {node}: {words}\n" for words in in_words(difference)), nl=False)
        except Unavailable as exc:
            if every is None:
                raise Failed(exc.message) from exc
            click.echo(f"not now: {exc.message}", err=True)
        except KuasarError as exc:
            raise Failed(exc.message) from exc
        if every is None:
            return
        time.sleep(every)


def _once(argv: tuple[str, ...], api: Api, node: str, dry_run: bool) -> dict[str, str | None]:
    wanted = labels_of(_asked(argv, "doctor"), _asked(argv, "engines"))
    difference = changes(api.labels(node), wanted)
    if difference and not dry_run:
        api.change_labels(node, difference)
    return difference


def _asked(argv: tuple[str, ...], command: str) -> Any:
    """What a command of ours says as data. doctor also ends with 1 when it has found something."""
    done = run_program([*argv, command, "--json"], _SECONDS)
    try:
        return json.loads(done.out)
    except ValueError as exc:
        raise InvalidArgument(f"kuasarctl {command}: {done.err.strip()[-500:] or 'no answer'}") from exc
