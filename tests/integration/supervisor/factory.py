"""The real plugin, whose fallback executes the tests' worker."""

from __future__ import annotations

from typing import Any

from kuasar.core.config import load
from kuasar.supervisor.launcher import Launcher
from kuasar.supervisor.plugin import KuasarInterface


def make_rpcinterface(supervisord: Any, config: str) -> KuasarInterface:
    settings = load(config)
    launcher = Launcher(settings, supervisord.options.logger, ("-m", "tests.integration.supervisor.tiny"))
    return KuasarInterface(supervisord, settings, launcher)
