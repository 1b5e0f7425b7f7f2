"""``kuasarctl``: the command. Its subcommands are in the modules beside, which load what they need when they run."""

from __future__ import annotations

import importlib

import click
from click.shell_completion import get_completion_class

from kuasar import __version__
from kuasar.cli.ctl.failures import EXIT_CODES
from kuasar.cli.ctl.node import Node
from kuasar.cli.ctl.options import CONFIG_VARIABLE, json_option
from kuasar.core.config import DEFAULT_PATH, ConfigError, load

_EPILOG = "Exit codes: " + "; ".join(f"{code} {words}" for code, words in EXIT_CODES.items()) + "."
_COMMANDS = {
    "bench": "kuasar.cli.ctl.commands.bench",
    "doctor": "kuasar.cli.ctl.doctor.command",
    "engines": "kuasar.cli.ctl.commands.host",
    "events": "kuasar.cli.ctl.commands.host",
    "exec": "kuasar.cli.ctl.commands.execute",
    "gc": "kuasar.cli.ctl.commands.host",
    "inspect": "kuasar.cli.ctl.commands.sandboxes",
    "log-level": "kuasar.cli.ctl.commands.levels",
    "install": "kuasar.cli.ctl.commands.install",
    "label-node": "kuasar.cli.ctl.commands.label_node",
    "logs": "kuasar.cli.ctl.commands.endings",
    "ps": "kuasar.cli.ctl.commands.sandboxes",
    "template": "kuasar.cli.ctl.commands.templates",
    "timings": "kuasar.cli.ctl.commands.sandboxes",
    "top": "kuasar.cli.ctl.commands.top",
    "uninstall": "kuasar.cli.ctl.commands.install",
    "why": "kuasar.cli.ctl.commands.endings",
}
"""Where each is; loaded when it is called or listed, which saves 0.1 s of every other one."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_COMMANDS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(importlib.import_module(module), cmd_name.replace("-", "_"))
        return command


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, epilog=_EPILOG
)
@click.option(
    "--config",
    metavar="FILE",
    envvar=CONFIG_VARIABLE,
    help=f"Configuration (default: {DEFAULT_PATH}, or the defaults if that is absent; also ${CONFIG_VARIABLE}).",
)
@click.version_option(__version__, prog_name="kuasarctl")
@click.pass_context
def main(ctx: click.Context, config: str | None) -> None:
    """See and operate the sandboxes of this node.

    Where a command takes an ID, the beginning of one is enough if it is the only one, and so is the name of a pod
    (NAME or NAMESPACE/NAME).
    """
    if ctx.invoked_subcommand in ("completion", "doctor", "install", "label-node", "uninstall"):
        return  # they need no configuration, or say what is wrong with it
    try:
        ctx.obj = ctx.with_resource(Node(load(config)))
    except ConfigError as exc:
        raise click.UsageError(str(exc)) from exc


@main.command()
@json_option
@click.pass_context
def version(ctx: click.Context, as_json: bool) -> None:
    """Say which version this is, and which configuration it uses."""
    import platform

    from kuasar.cli.ctl.output import data, fields

    values = {
        "kuasar": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "config": ctx.find_object(Node).config.path,  # type: ignore[union-attr]
    }
    if as_json:
        data(values)
    else:
        fields({**values, "config": values["config"] or "the defaults"}.items())


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a SHELL complete commands, options and ids.

    For bash: kuasarctl completion bash > /etc/bash_completion.d/kuasarctl
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click knows these shells"
    click.echo(kind(main, {}, "kuasarctl", "_KUASARCTL_COMPLETE").source())


if __name__ == "__main__":
    main(prog_name="kuasarctl")
