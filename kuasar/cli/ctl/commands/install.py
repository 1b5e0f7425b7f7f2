"""``kuasarctl install`` and ``uninstall``: what is put onto the node, and how it goes away again."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

import click

from kuasar.cli.ctl.failures import Absent, Failed
from kuasar.cli.ctl.node import listener_pid
from kuasar.cli.ctl.options import json_option
from kuasar.cli.ctl.output import data, remark
from kuasar.core.config import Config, ConfigError
from kuasar.core.errors import BackendFailed, KuasarError, NotFound
from kuasar.core.programs import find_program
from kuasar.install.installer import Installer, Outcome
from kuasar.install.record import Target
from kuasar.install.services import Systemd

_READY_SECONDS = 60.0
_INTERVAL = 0.25
_CALL_SECONDS = 5.0
_END_SECONDS = 10.0
_root = click.option("--root", default="/", metavar="DIR", help="Work below DIR, and touch no service.")
_dry_run = click.option("--dry-run", is_flag=True, help="Only show every change, as a diff.")
_no_services = click.option("--no-services", is_flag=True, help="Leave starting and stopping to me.")


@click.command()
@_dry_run
@_root
@_no_services
@click.option(
    "--containerd-config",
    default=Target.config,
    show_default=True,
    metavar="FILE",
    help="containerd's own configuration, which is to import our drop-in.",
)
@click.option("--containerd", "program", default="containerd", metavar="PROGRAM", help="containerd itself, to ask.")
@click.option("--containerd-service", default=Target.service, show_default=True, metavar="UNIT")
@click.option(
    "--kuasar-config",
    type=click.File("rb"),
    metavar="FILE",
    help="What to put there as kuasar.toml, instead of the file with the defaults.",
)
@json_option
def install(
    kuasar_config: IO[bytes] | None,
    dry_run: bool,
    root: str,
    no_services: bool,
    containerd_config: str,
    program: str,
    containerd_service: str,
    as_json: bool,
) -> None:
    """Put kuasar onto this node: configuration, service, the runtimes for containerd, shim and kuasarctl.

    containerd is asked before anything is written, and has to answer after its restart; else all is put back as it was.
    Files that you have edited are kept, ours is put beside them. A second time nothing happens.
    """
    target = Target(containerd_config, _found(program), containerd_service)
    try:
        brought = None if kuasar_config is None else kuasar_config.read()
        outcome = _installer(root, no_services).install(target, dry_run, brought)
    except (KuasarError, ConfigError) as exc:
        raise Failed(exc.message) from exc
    _show(outcome, dry_run, as_json, "nothing to do: all of it is installed")


@click.command()
@_dry_run
@_root
@_no_services
@click.option("--purge", is_flag=True, help="Remove also files that were edited, instead of keeping them aside.")
@json_option
def uninstall(dry_run: bool, root: str, no_services: bool, purge: bool, as_json: bool) -> None:
    """Take kuasar away from this node, and give containerd its configuration back, byte for byte.

    Refused while there are pods of ours. State, logs and caches go, too. Files that you have edited are kept as
    FILE.kuasar-saved.
    """
    try:
        outcome = _installer(root, no_services).uninstall(dry_run, purge, remark)
    except NotFound as exc:
        raise Absent(exc.message) from exc
    except KuasarError as exc:
        raise Failed(exc.message) from exc
    _show(outcome, dry_run, as_json, "nothing to do")


def _installer(root: str, no_services: bool) -> Installer:
    root = os.path.abspath(root)
    if root == "/" and os.geteuid() != 0:
        raise Failed("only root may do this")
    return Installer(root, Systemd(root, not no_services), runtimes_missing, pods_of, end_keeper)


def _found(program: str) -> str:
    path = find_program(program)
    if path is None:
        raise Failed(f"{program} is not to be found: name containerd's program with --containerd")
    return path


def _show(outcome: Outcome, dry_run: bool, as_json: bool, nothing: str) -> None:
    if as_json:
        data({"dry_run": dry_run, **outcome.to_json()})
        return
    for change in outcome.changes:
        if change.changes:
            because = f" ({change.reason})" if change.reason else ""
            click.echo(f"{change.action} {change.path}{because}")
            if dry_run:
                click.echo(change.diff(), nl=False)
    for step in outcome.services:
        click.echo(step)
    for note in outcome.notes:
        remark(note)
    if not outcome.changed:
        click.echo(nothing)


def runtimes_missing(config: Config, names: Sequence[str]) -> str:
    """Wait until containerd's CRI answers and has these runtimes; else why not, in words."""
    from kuasar.cli.cri import CriClient, CriError

    deadline = time.monotonic() + _READY_SECONDS
    while True:
        try:
            with CriClient(_socket(config), timeout=_CALL_SECONDS) as cri:
                found = {handler.name for handler in cri.runtime_status().runtime_handlers}
            missing = sorted(set(names) - found)
            why = f"it has no runtime {', '.join(missing)}" if missing else _no_shim(config) if names else ""
        except CriError as exc:
            why = f"its CRI does not answer at {_socket(config)}: {exc}"
        if not why or time.monotonic() > deadline:
            return why
        time.sleep(_INTERVAL)


def _no_shim(config: Config) -> str:
    """Without it on its own PATH a containerd that is restarted later would drop our containers."""
    from kuasar.cli.ctl.doctor.containerd import find_shim
    from kuasar.cli.ctl.doctor.finding import FAIL

    try:
        found = find_shim(listener_pid(_socket(config)))
    except OSError as exc:
        return f"nobody listens on {_socket(config)}: {exc.strerror or exc}"
    return found.reason if found.status == FAIL else ""


def pods_of(config: Config, runtimes: Sequence[str]) -> list[str]:
    """The ids of all pods, ready or not, that containerd has of these runtimes; none if it does not answer."""
    from kuasar.cli.cri import CriClient, CriError

    try:
        with CriClient(_socket(config), timeout=_CALL_SECONDS) as cri:
            return [pod.id for pod in cri.list_pods() if pod.runtime_handler in runtimes]
    except CriError as exc:
        remark(f"containerd was not asked for its pods: {exc}")
        return []


def end_keeper(config: Config) -> None:
    """End the keeper and wait for its end; harmless if there is none. Raises BackendFailed if it does not end."""
    try:
        process = os.pidfd_open(listener_pid(config.supervisor.keeper, socket.SOCK_SEQPACKET))
    except OSError:
        return
    try:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], _END_SECONDS)[0]:
            raise BackendFailed(f"the keeper at {config.supervisor.keeper} does not end")
    finally:
        os.close(process)


def _socket(config: Config) -> str:
    return config.containerd.events.removesuffix(".ttrpc")
