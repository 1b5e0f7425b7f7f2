"""How ``kuasarctl`` ends: its exit codes, and the errors that lead to them."""

from __future__ import annotations

import click

EXIT_CODES: dict[int, str] = {
    0: "done",
    1: "it failed, or `doctor` or `gc` found something that has failed",
    2: "wrong command line or configuration; also an id that fits several sandboxes",
    3: "there is no such sandbox, template or log",
    4: "a process of the node that is needed does not answer (gateway, supervisord, containerd)",
    124: "`exec`: the command's time was over; any other code is the command's own, 128 + N if signal N has ended it",
    125: "`exec`: kuasarctl could not run the command (no such sandbox, refused), or lost the gateway meanwhile",
    126: "`exec`: the command is no executable file",
    127: "`exec`: there is no such command",
    130: "`bench`: it was interrupted; its pods have been removed",
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
