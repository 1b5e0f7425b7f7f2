"""``exec``: a command in a sandbox itself."""

from __future__ import annotations

import os
import sys

import click

from kuasar.cli.ctl.failures import Absent, Ambiguous, Away, Failed
from kuasar.cli.ctl.node import Node
from kuasar.cli.ctl.options import pass_node, sandbox_argument

OWN_FAILURE = 125


class NotRun(click.ClickException):
    """``kuasarctl`` itself could not do it, or not to the end."""

    exit_code = OWN_FAILURE


@click.command()
@sandbox_argument
@click.argument("command", nargs=-1, required=True, metavar="-- COMMAND [ARG]...")
@click.option("-i", "--stdin", "with_stdin", is_flag=True, help="Pass standard input on; /dev/null otherwise.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Kill it then, and exit with 124."
)
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="Add to its environment; may be repeated.")
@click.option("-w", "--workdir", default="", metavar="DIR", help="Start it there.  [default: /]")
@pass_node
def exec(
    node: Node,
    wanted: str,
    command: tuple[str, ...],
    with_stdin: bool,
    tty: bool,
    timeout: float | None,
    env: tuple[str, ...],
    workdir: str,
) -> None:
    """Run a COMMAND in a sandbox itself, not in one of its containers.

    In a virtual machine that is the guest's own root, with busybox; otherwise a program of the host runs in the
    namespaces of the pod. The command ends with kuasarctl, and what it has started ends with it. Signals are
    passed on; a third Ctrl-C kills it.

    Exits as the command does (128+N if signal N has ended it), with 124 when its time was over, 126 if it is not
    executable, 127 if there is none, and 125 if kuasarctl could not run it or lost the gateway meanwhile.
    """
    variables = dict(_variable(each) for each in env)
    if tty and with_stdin and not sys.stdin.isatty():
        raise click.UsageError("-i and -t: standard input is no terminal")
    if tty:
        variables.setdefault("TERM", os.environ.get("TERM", "dumb"))
    from kuasar.cli.ctl.session import Session

    try:
        sandbox = node.find(wanted)
        session = Session(sandbox, command, variables, workdir, timeout or 0.0, with_stdin, tty)
        status, reason = session.run(node)
    except (Absent, Ambiguous, Away, Failed) as exc:
        raise NotRun(exc.message) from exc
    if reason:
        click.echo(f"kuasarctl: {reason}", err=True)
    sys.exit(status)


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.UsageError(f"--env: {text!r} is not NAME=VALUE")
    return name, value
