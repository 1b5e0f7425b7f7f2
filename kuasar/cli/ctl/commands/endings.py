"""``why`` and ``logs``: how a sandbox ended, why it failed, what it said."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO

import click

from kuasar.cli.ctl import words
from kuasar.cli.ctl.failures import Absent
from kuasar.cli.ctl.model import Sandbox
from kuasar.cli.ctl.node import Node
from kuasar.cli.ctl.options import json_option, pass_node, sandbox_argument
from kuasar.cli.ctl.output import data, fields, lines
from kuasar.core.errors import KuasarError
from kuasar.core.records import DAMAGED
from kuasar.core.tombstones import Tombstone
from kuasar.supervisor.client import SupervisorClient, WorkerState

_FILES = {"worker": ".log", "agent": ".agent.log", "console": ".console.log"}
_CHUNK = 65536
_LOOK_SECONDS = 0.2


@click.command()
@sandbox_argument
@json_option
@pass_node
def why(node: Node, wanted: str, as_json: bool) -> None:
    """Say how a sandbox ended or why its start failed; of one that runs, what went wrong last.

    What is known of a sandbox that is gone is kept for a day.
    """
    sandbox = node.find_also_ended(wanted)
    tombstone, recorded, worker = node.tombstone(sandbox), node.recorded(sandbox), _worker(node, sandbox)
    verdict = _verdict(sandbox, recorded, tombstone, worker)
    if as_json:
        data(
            {
                "id": sandbox,
                "verdict": verdict,
                "state": recorded.state if recorded else "gone",
                "worker": dict(worker) if worker else None,
                "end": dataclasses.asdict(tombstone) if tombstone else None,
            }
        )
        return
    click.echo(words.printable(verdict))
    if worker is not None and worker["last_exit"]:
        fields([("worker", f"{worker['restarts']} restarts; the one before: {worker['last_exit']}")])
    if tombstone is not None:
        _show(tombstone)


def _verdict(sandbox: str, recorded: Sandbox | None, tombstone: Tombstone | None, worker: WorkerState | None) -> str:
    """One sentence."""
    if recorded is not None and recorded.state == DAMAGED:
        return f"sandbox {sandbox}: {recorded.reason}"
    if worker is not None and worker["stopped_by_operator"]:
        return f"sandbox {sandbox}: its worker was stopped by an operator (supervisorctl start sandbox:{sandbox})"
    if recorded is not None and recorded.state == "ready":
        return f"sandbox {sandbox} runs, since {words.moment(recorded.started_at)}"
    if tombstone is not None:
        verb = "could not be started" if tombstone.phase.startswith("start") else "ended"
        return f"sandbox {sandbox} {verb} at {words.moment(tombstone.ended_at)}: {tombstone.reason}"
    if recorded is not None and recorded.exited_at:
        return f"sandbox {sandbox} ended at {words.moment(recorded.exited_at)}: {recorded.reason}"
    return f"sandbox {sandbox} is {recorded.state if recorded else 'gone'}; nothing has failed"


def _show(tombstone: Tombstone) -> None:
    fields(
        [
            ("pod", tombstone.pod),
            ("engine", tombstone.engine),
            ("when", words.moment(tombstone.ended_at)),
            ("phase", tombstone.phase),
            ("cause", tombstone.reason),
            ("ended with", words.ending(tombstone.exit_status)),
            ("out of memory", f"{tombstone.oom_kills} of its processes were killed" if tombstone.oom_kills else ""),
            ("created", words.moment(tombstone.created_at)),
            ("started", words.moment(tombstone.started_at)),
        ]
    )
    lines("last lines of its console", tombstone.console)
    lines("last lines of its agent or machine", tombstone.log)


def _worker(node: Node, sandbox: str) -> WorkerState | None:
    client = SupervisorClient(node.config.supervisor.socket)
    try:
        return client.state(sandbox)
    except KuasarError:
        return None  # supervisord is away, or knows no such worker: then there is nothing to tell
    finally:
        client.close()


@click.command()
@sandbox_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written, until interrupted.")
@click.option("-n", "--lines", "last", type=click.IntRange(min=0), metavar="N", help="Only the last N lines.")
@click.option("--worker", "which", flag_value="worker", default=True, help="What its worker logs (the default).")
@click.option("--agent", "which", flag_value="agent", help="What its agent, or its machine's programs, say.")
@click.option("--console", "which", flag_value="console", help="The console of a virtual machine.")
@json_option
@pass_node
def logs(node: Node, wanted: str, follow: bool, last: int | None, which: str, as_json: bool) -> None:
    """Print what a sandbox's worker, agent or console has written.

    The logs of the last 100 sandboxes that are gone are kept, too. With --json each line is an object.
    """
    sandbox = node.find_also_ended(wanted)
    path = f"{node.config.sandbox_log_dir}/{sandbox}{_FILES[which]}"
    try:
        file = open(path, "rb")  # noqa: SIM115 - replaced while it is followed
    except FileNotFoundError:
        hint = f"; its last lines: kuasarctl why {sandbox}" if node.tombstone(sandbox) else ""
        raise Absent(f"there is no {path}{hint}") from None
    except OSError as exc:
        raise Absent(f"{path} cannot be read: {exc.strerror}") from exc
    with suppress(KeyboardInterrupt):
        _print(file, path, follow, last, {"sandbox": sandbox, "log": which} if as_json else None)


def _print(file: BinaryIO, path: str, follow: bool, last: int | None, labels: dict[str, Any] | None) -> None:
    content = file.read().splitlines(keepends=True)
    for text in content if last is None else content[max(0, len(content) - last) :]:
        _emit(text, labels)
    sys.stdout.flush()
    if follow:
        for text in _following(file, path):
            _emit(text, labels)
            sys.stdout.flush()


def _emit(text: bytes, labels: dict[str, Any] | None) -> None:
    if labels is None:
        click.echo(text, nl=False)
    else:
        import json

        click.echo(json.dumps({**labels, "line": text.decode(errors="replace").rstrip("\n")}, ensure_ascii=False))


def _following(file: BinaryIO, path: str) -> Iterator[bytes]:
    """What is appended from now on, also after the file was rotated. Never ends."""
    rest, rotated = b"", False
    while True:
        chunk = file.read(_CHUNK)
        if chunk:
            *whole, rest = (rest + chunk).split(b"\n")
            yield from (text + b"\n" for text in whole)
            continue
        with suppress(OSError):
            now, known = os.stat(path), os.fstat(file.fileno())
            if now.st_ino != known.st_ino and not rotated:
                rotated = True  # what was written between the last look and the rotation is still to be read
                continue
            if rotated:
                old, file = file, open(path, "rb")  # noqa: SIM115 - the new one takes its place
                old.close()
                rotated = False
                continue
            if now.st_size < file.tell():
                file.seek(0)
                continue
        time.sleep(_LOOK_SECONDS)
