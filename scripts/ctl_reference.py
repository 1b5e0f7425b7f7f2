#!/usr/bin/env python3
"""Writes the reference part of docs/kuasarctl.md from the commands themselves; a unit test compares the two.

`python -m scripts.ctl_reference` rewrites everything below the marker line; what stands above it is written by hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from kuasar.cli.ctl.failures import EXIT_CODES
from kuasar.cli.ctl.main import main as kuasarctl

PAGE = Path(__file__).resolve().parent.parent / "docs" / "kuasarctl.md"
MARKER = "<!-- Below: written by `python -m scripts.ctl_reference`. -->"


def reference() -> str:
    """The generated part."""
    return "\n".join([MARKER, "", "## Exit codes", "", *_codes(), "", "## Commands", "", *_commands()]) + "\n"


def whole(text: str) -> str:
    """The page with its generated part made anew."""
    return text.partition(MARKER)[0] + reference()


def _codes() -> Iterator[str]:
    yield "| code | meaning |"
    yield "|---|---|"
    yield from (f"| {code} | {words} |" for code, words in EXIT_CODES.items())


def _commands() -> Iterator[str]:
    top = click.Context(kuasarctl, info_name="kuasarctl", **kuasarctl.context_settings)
    yield from _described(kuasarctl, top)
    yield from _below(kuasarctl, top)


def _below(group: click.Group, context: click.Context) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context)
        yield from _described(command, inner)
        if isinstance(command, click.Group):
            yield from _below(command, inner)


def _described(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"### `{context.command_path}`"
    yield ""
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"    {context.command_path} {usage}"
    yield ""
    yield from inspect.cleandoc(command.help or "").splitlines()
    yield ""
    records = (parameter.get_help_record(context) for parameter in command.get_params(context))
    options = [record for record in records if record is not None and record[1]]
    if options:
        yield "| option | |"
        yield "|---|---|"
        yield from (f"| `{names}` | {_cell(words)} |" for names, words in options)
        yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(whole(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
