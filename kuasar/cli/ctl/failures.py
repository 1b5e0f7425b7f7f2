"""How ``kuasarctl`` ends: its exit codes, and the errors that lead to them."""

from __future__ import annotations

import click

EXIT_CODES: dict[int, str] = {
    0: "done",
    1: "it failed, or `doctor` or `gc` found something that has failed",
    2: "wrong command line or configuration; also an id that fits several sandboxes",
    3: "there is no such sandbox, template or log",
    4: "a process of the node that is needed does not answer (gateway, supervisord)",
}


class Failed(click.ClickException):
    """Something went wrong."""

    exit_code = 1


class Ambiguous(click.ClickException):
    """An id fits several."""

    exit_code = 2


class Absent(click.ClickException):
    """What was named does not exist."""

    exit_code = 3


class Away(click.ClickException):
    """Nobody answers."""

    exit_code = 4
