"""Our own processes: supervisord with its workers, zygote, keeper, gateway; and what they should have cleaned up."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator

from kuasar.cli.ctl.doctor.finding import Finding, failed, passed, warned
from kuasar.cli.ctl.failures import Absent, Away, Failed
from kuasar.cli.ctl.node import Node, listener_pid
from kuasar.core.errors import KuasarError, Unavailable
from kuasar.core.programs import run_program
from kuasar.core.records import DAMAGED
from kuasar.supervisor.client import SupervisorClient

_START = "systemctl start kuasar; where it is not installed: kuasarctl install"
_GC_SECONDS = 60.0
_SHOWN = 3


def check(node: Node) -> Iterator[Finding]:
    """All of it."""
    yield from _supervisord(node)
    config = node.config.supervisor
    yield _listener("zygote", config.zygote, "workers and agents are started by exec, 0.2 s slower each")
    yield _listener("keeper", config.keeper, "containers are marked as exited if the gateway dies now")
    yield _gateway(node)
    yield _leftovers(node)


def _supervisord(node: Node) -> Iterator[Finding]:
    client = SupervisorClient(node.config.supervisor.socket)
    try:
        states = client.states()
    except Unavailable as exc:
        yield failed("supervisord", exc.message, _START)
        return
    except KuasarError as exc:
        yield failed("supervisord", exc.message, "see its log in log_dir; is it ours, with the kuasar plugin?")
        return
    finally:
        client.close()
    yield passed("supervisord", f"answers; {len(states)} workers")
    crashing = [state for state in states if state["state"] in ("BACKOFF", "FATAL")]
    stopped = [state["id"] for state in states if state["stopped_by_operator"]]
    if crashing:
        words = "; ".join(f"{each['id']}: {each['last_exit'] or each['state']}" for each in crashing[:_SHOWN])
        remedy = f"kuasarctl logs {crashing[0]['id']}"
        yield warned("workers", f"{len(crashing)} do not stay up ({words})", remedy)
    elif stopped:
        remedy = f"supervisorctl start sandbox:{stopped[0]}"
        yield warned("workers", f"stopped by an operator: {' '.join(stopped[:_SHOWN])}", remedy)
    else:
        yield passed("workers", "none is crashing, none was stopped")


def _listener(check: str, path: str, otherwise: str) -> Finding:
    try:
        pid = listener_pid(path, socket.SOCK_SEQPACKET)
    except OSError as exc:
        reason = f"nobody listens on {path} ({exc.strerror or exc}): {otherwise}"
        return warned(check, reason, f"supervisorctl start {check}; its log is {check}.log in log_dir")
    return passed(check, f"pid {pid} listens")


def _gateway(node: Node) -> Finding:
    try:
        listing = node.listing()
    except (Away, Failed, Absent) as exc:
        return failed("gateway", exc.message, "supervisorctl status gateway; its log is gateway.log in log_dir")
    if listing.source != "gateway":
        why = node.why_no_gateway() or "the gateway does not answer"
        return failed("gateway", why, "supervisorctl status gateway; its log is gateway.log in log_dir")
    damaged = [each.id for each in listing.sandboxes if each.state == DAMAGED]
    if damaged:
        remedy = f"kuasarctl why {damaged[0]}; then crictl rmp -f {damaged[0]}"
        return warned("gateway", f"answers; damaged records: {' '.join(damaged[:_SHOWN])}", remedy)
    return passed("gateway", f"answers; {len(listing.sandboxes)} sandboxes")


def _leftovers(node: Node) -> Finding:
    argv = [sys.executable, "-m", "kuasar.supervisor.reconcile", "--dry-run", "--json"]
    argv += ["--config", node.config.path] if node.config.path else []
    try:
        report = json.loads(run_program(argv, _GC_SECONDS).out)
    except (KuasarError, ValueError) as exc:
        return warned("leftovers", f"they could not be looked for: {exc}", "kuasarctl gc --dry-run")
    if not report["supervisord"]:
        return warned("leftovers", "without supervisord nobody knows what belongs to whom", _START)
    actions = report["actions"]
    if actions:
        first = f"{actions[0]['verb']} {actions[0]['name'] or actions[0]['sandbox']}"
        return warned("leftovers", f"{len(actions)} things to put in order (first: {first})", "kuasarctl gc")
    return passed("leftovers", "nothing lies about")
