"""``log-level``: how much running processes log."""

from __future__ import annotations

import sys
from typing import Any

import click

from kuasar.cli.ctl.node import Node
from kuasar.cli.ctl.options import SandboxName, json_option, pass_node
from kuasar.cli.ctl.output import data, table
from kuasar.core import log


@click.command(name="log-level")
@click.argument("level", type=click.Choice(log.LEVELS), required=False)
@click.option("--gateway", is_flag=True, help="The gateway's (the default, where no other is named).")
@click.option(
    "--worker", "wanted", metavar="ID", type=SandboxName(), multiple=True, help="That of a sandbox's worker and agent."
)
@click.option("--all", "everyone", is_flag=True, help="The gateway's and those of all sandboxes.")
@json_option
@pass_node
def log_level(
    node: Node, level: str | None, gateway: bool, wanted: tuple[str, ...], everyone: bool, as_json: bool
) -> None:
    """Show how much running processes log, or change it to LEVEL, at once and without a restart.

    It holds until the process ends: a successor, and every sandbox that is made later, begins with `log_level` of the
    configuration. Exits with 1 if a process that was named could not be asked.
    """
    from kuasar.api.gen.kuasar.admin.v1 import admin_pb2

    sandboxes = [each.id for each in node.names()] if everyone else [node.find(each) for each in wanted]
    request = admin_pb2.LogLevelRequest(
        level=level or "", gateway=gateway or everyone or not wanted, sandboxes=sorted(set(sandboxes))
    )
    answer = node.call(node.admin().LogLevel, request)
    found: list[dict[str, Any]] = [
        {"process": each.process, "sandbox": each.sandbox, "level": each.level, "error": each.error}
        for each in answer.processes
    ]
    if as_json:
        data(found)
    else:
        rows = ((each["process"], each["sandbox"] or "-", each["level"] or each["error"]) for each in found)
        table(("PROCESS", "SANDBOX", "LEVEL"), rows)
    if any(each["error"] for each in found):
        sys.exit(1)
