"""``ps``, ``inspect``, ``timings``: what runs."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from kuasar.cli.ctl import words
from kuasar.cli.ctl.failures import Absent, Away
from kuasar.cli.ctl.model import Sandbox, from_gateway
from kuasar.cli.ctl.node import Node
from kuasar.cli.ctl.options import json_option, pass_node, sandbox_argument
from kuasar.cli.ctl.output import bars, data, fields, remark, table

_SHORT = 12
_HEADERS = ("ID", "POD", "ENGINE", "STATE", "AGE", "WORKER", "GEN", "RESTARTS", "MACHINE")


@click.command()
@click.option("--full", is_flag=True, help="Whole ids instead of their beginnings.")
@click.option("-q", "--quiet", is_flag=True, help="Only ids, whole ones.")
@json_option
@pass_node
def ps(node: Node, full: bool, quiet: bool, as_json: bool) -> None:
    """List the sandboxes of this node.

    No worker is asked, so a sandbox that hangs keeps nobody. Where the gateway does not answer, the list comes from
    the sandboxes' directories, and a note on standard error says so.
    """
    listing = node.listing()
    if as_json:
        found = [dataclasses.asdict(each) for each in listing.sandboxes]
        data({"source": listing.source, "note": listing.note, "sandboxes": found})
        return
    remark(listing.note)
    if quiet:
        for each in listing.sandboxes:
            click.echo(each.id)
    else:
        table(_HEADERS, (_row(each, full) for each in listing.sandboxes))


def _row(each: Sandbox, full: bool) -> tuple[object, ...]:
    pod = words.pod(each.pod_name, each.pod_namespace)
    worker = "?" if each.worker is None else str(each.worker_pid) if each.worker == "alive" else each.worker
    return (
        each.id if full else each.id[:_SHORT],
        pod or "-",
        each.engine or "-",
        each.state,
        words.age(each.created_at),
        worker,
        each.generation,
        "?" if each.restarts is None else each.restarts,
        each.machine_pid or "-",
    )


@click.command()
@sandbox_argument
@json_option
@pass_node
def inspect(node: Node, wanted: str, as_json: bool) -> None:
    """Show everything about one sandbox, as its worker sees it.

    If the worker or the gateway does not answer, what the record says is shown, and a note on standard error says so.
    """
    sandbox, info, note = _look(node, node.find(wanted))
    if as_json:
        data({**dataclasses.asdict(sandbox), "info": info, "note": note})
        return
    remark(note)
    pod = words.pod(sandbox.pod_name, sandbox.pod_namespace)
    known: list[tuple[str, Any]] = [
        ("id", sandbox.id),
        ("pod", f"{pod} ({sandbox.pod_uid})" if sandbox.pod_uid else pod),
        ("namespace", sandbox.namespace),
        ("engine", info.get("engine", sandbox.engine)),
        ("state", sandbox.state),
        ("created", f"{words.moment(sandbox.created_at)} ({words.age(sandbox.created_at)})"),
        ("started", words.moment(sandbox.started_at)),
        ("ended", words.moment(sandbox.exited_at) if sandbox.exited_at else ""),
        ("reason", sandbox.reason),
        ("machine pid", sandbox.machine_pid or ""),
        ("worker", f"{sandbox.worker} (pid {sandbox.worker_pid})" if sandbox.worker else ""),
        ("generation", sandbox.generation),
        ("restarts", sandbox.restarts),
        ("containers", " ".join(sandbox.containers)),
        ("phases", " ".join(f"{name}={milliseconds:g}ms" for name, milliseconds in sandbox.phases)),
    ]
    shown = {"engine", "pid", "worker_pid", "containers", "phases", "reason", "state", "sandboxer", "exit_status"}
    fields([*known, *((name, text) for name, text in sorted(info.items()) if name not in shown)])


def _look(node: Node, sandbox: str) -> tuple[Sandbox, dict[str, str], str]:
    """What is known, what the worker adds, and a note."""
    from kuasar.api.gen.kuasar.admin.v1 import admin_pb2

    try:
        answer = node.call(node.admin().GetSandbox, admin_pb2.GetSandboxRequest(id=sandbox))
        return from_gateway(answer.sandbox), dict(answer.info), ""
    except (Away, Absent) as exc:
        recorded = node.recorded(sandbox)
        if recorded is None:
            raise
        return recorded, {}, f"{exc.message}; this is what its record says"


@click.command()
@sandbox_argument
@json_option
@pass_node
def timings(node: Node, wanted: str, as_json: bool) -> None:
    """Show where the time of a sandbox's start went, phase by phase."""
    sandbox = node.find(wanted)
    recorded = node.recorded(sandbox)
    phases = recorded.phases if recorded is not None else []
    if as_json:
        together = round(sum(milliseconds for _, milliseconds in phases), 2)
        named = [{"name": name, "milliseconds": milliseconds} for name, milliseconds in phases]
        data({"id": sandbox, "phases": named, "milliseconds": together})
        return
    if not phases:
        raise Absent(f"sandbox {sandbox} has not been started (its state: {recorded.state if recorded else 'gone'})")
    bars(phases)
