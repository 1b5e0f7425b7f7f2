"""Which engines can be used: asked of the gateway, or looked up here when it does not answer."""

from __future__ import annotations

import json
import sys
from typing import Any

from kuasar.cli.ctl.failures import Away, Failed
from kuasar.cli.ctl.node import ENGINES_SECONDS, Node
from kuasar.core.errors import KuasarError
from kuasar.core.programs import run_program


def ask_engines(node: Node) -> tuple[list[dict[str, Any]], str]:
    """Name, kind, binary, version, usable, reason, capabilities and details of each, and a note on how we know."""
    from kuasar.api.gen.kuasar.admin.v1 import admin_pb2

    try:
        answer = node.call(node.admin().Engines, admin_pb2.EnginesRequest(), ENGINES_SECONDS)
    except Away as exc:
        return _look_here(node), f"{exc.message}; the engines were asked from here"
    return [
        {
            "name": each.name,
            "kind": each.kind,
            "usable": each.usable,
            "reason": each.reason,
            "binary": each.binary,
            "version": each.version,
            "capabilities": list(each.capabilities),
            "details": dict(each.details),
        }
        for each in answer.engines
    ], ""


def _look_here(node: Node) -> list[dict[str, Any]]:
    argv = [sys.executable, "-m", "kuasar.backends.describe"]
    argv += ["--config", node.config.path] if node.config.path else []
    try:
        done = run_program(argv, ENGINES_SECONDS)
    except KuasarError as exc:
        raise Failed(exc.message) from exc
    if done.code:
        raise Failed(f"the engines could not be asked: {done.err.strip()[-500:]}")
    found: list[dict[str, Any]] = json.loads(done.out)
    return found
