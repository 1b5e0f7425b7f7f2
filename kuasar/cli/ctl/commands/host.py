"""``engines``, ``events``, ``gc``: the node as a whole."""

from __future__ import annotations

import sys
from contextlib import suppress

import click

from kuasar.cli.ctl import words
from kuasar.cli.ctl.engines import ask_engines
from kuasar.cli.ctl.failures import Failed
from kuasar.cli.ctl.node import Node
from kuasar.cli.ctl.options import SandboxName, json_option, pass_node
from kuasar.cli.ctl.output import data, line, remark, table
from kuasar.core import tombstones
from kuasar.core.errors import KuasarError
from kuasar.core.programs import run_program

_GC_SECONDS = 300.0


@click.command()
@json_option
@pass_node
def engines(node: Node, as_json: bool) -> None:
    """List the configured engines, and whether each can be used on this host, else why not."""
    found, note = ask_engines(node)
    if as_json:
        users = node.config.sandboxers.items()
        for each in found:
            each["sandboxers"] = sorted(name for name, sandboxer in users if sandboxer.engine == each["name"])
        data({"note": note, "engines": found})
        return
    remark(note)
    rows = (
        (
            each["name"],
            each["kind"],
            "usable" if each["usable"] else "unusable",
            each["version"] or "-",
            each["binary"] or "-",
            " ".join(each["capabilities"]),
            each["reason"] or " ".join(f"{name}={text:.40}" for name, text in sorted(each["details"].items()) if text),
        )
        for each in found
    )
    table(("ENGINE", "KIND", "USABLE", "VERSION", "PROGRAM", "CAN", "REMARKS"), rows)


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens, until interrupted.")
@click.option("--sandbox", "wanted", metavar="ID", type=SandboxName(), help="Only of this sandbox.")
@json_option
@pass_node
def events(node: Node, follow: bool, wanted: str | None, as_json: bool) -> None:
    """Show what has ended in the last day; with -f, then what happens.

    With --json each event is an object on a line of its own.
    """
    sandbox = node.find_also_ended(wanted) if wanted else ""
    for each in reversed(tombstones.read_all(node.config.state_dir)):
        if sandbox in ("", each.sandbox):
            what = {"phase": each.phase, "exit_status": str(each.exit_status), "reason": each.reason}
            _tell(each.ended_at, "sandbox.ended", each.sandbox, what, as_json)
    if not follow:
        return
    with suppress(KeyboardInterrupt):
        for event in node.watch(sandbox):
            if event.lost:
                remark(f"{event.lost} events were lost here: they came faster than they were read")
            if event.topic != "watching":
                _tell(event.at, event.topic, event.sandbox, dict(event.data), as_json)


def _tell(at: int, topic: str, sandbox: str, values: dict[str, str], as_json: bool) -> None:
    if as_json:
        line({"at": at, "topic": topic, "sandbox": sandbox, "data": values})
        return
    rest = " ".join(f"{name}={text}" for name, text in values.items() if text and name != "id")
    click.echo(words.printable(f"{words.moment(at)}  {topic:<16}  {sandbox}  {rest}"))
    sys.stdout.flush()


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@json_option
@pass_node
def gc(node: Node, dry_run: bool, as_json: bool) -> None:
    """Adopt what lives without a worker, and free what nobody answers for.

    supervisord does this every minute by itself; this is for those who do not want to wait, or want to look first.
    """
    argv = [sys.executable, "-m", "kuasar.supervisor.reconcile"]
    argv += ["--config", node.config.path] if node.config.path else []
    argv += [option for option, given in (("--dry-run", dry_run), ("--json", as_json)) if given]
    try:
        done = run_program(argv, _GC_SECONDS)
    except KuasarError as exc:
        raise Failed(exc.message) from exc
    click.echo(done.out, nl=False)
    if done.code:
        click.echo(done.err, nl=False, err=True)
        sys.exit(1)
