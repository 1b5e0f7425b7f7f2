"""The reference of kuasarctl says what the commands say."""

from __future__ import annotations

import click

from kuasar.cli.ctl.main import main
from scripts.ctl_reference import PAGE, reference, whole


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert whole(text) == text, "run: python -m scripts.ctl_reference"


def test_every_command_and_option_is_there() -> None:
    text = reference()
    context = click.Context(main, info_name="kuasarctl")
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        assert command.help, name
        assert f"### `kuasarctl {name}`" in text
        for parameter in command.params:
            assert all(option in text for option in parameter.opts if option.startswith("-"))


def test_data_everywhere() -> None:
    """Every command that shows something has --json."""
    context = click.Context(main, info_name="kuasarctl")
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        if name not in ("completion", "exec", "template"):
            assert "--json" in [option for parameter in command.params for option in parameter.opts], name
