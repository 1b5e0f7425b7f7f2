"""What the commands have in common: their options, their arguments, and how the node reaches them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from kuasar.cli.ctl.node import Node
from kuasar.core.config import ConfigError, load

CONFIG_VARIABLE = "KUASAR_CONFIG"

pass_node = click.make_pass_decorator(Node)
json_option = click.option("--json", "as_json", is_flag=True, help="Print data instead of text.")


class SandboxName(click.ParamType[str]):
    """An id, a unique beginning of one, or a pod's name. Completed from the directories."""

    name = "sandbox"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            config = load(ctx.find_root().params.get("config"))
        except ConfigError:
            return []
        with Node(config) as node:
            names = node.names()
        found = [CompletionItem(each.id, help=each.pod) for each in names if each.id.startswith(incomplete)]
        if incomplete:
            found += [CompletionItem(each.pod, help=each.id) for each in names if each.pod.startswith(incomplete)]
        return found


def sandbox_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """``ID``."""
    return click.argument("wanted", metavar="ID", type=SandboxName())(function)
