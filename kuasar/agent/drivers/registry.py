"""The table of container drivers: one line here is how a driver joins the agent. Each is imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from kuasar.agent.drivers.base import Context, Driver
from kuasar.core.errors import InvalidArgument

DRIVERS: Mapping[str, str] = {
    "oci": "kuasar.agent.drivers.oci",
    "gvisor": "kuasar.agent.drivers.gvisor",
    "quark": "kuasar.agent.drivers.quark.driver",
    "wasmedge": "kuasar.agent.drivers.wasmedge",
    "wasmtime": "kuasar.agent.drivers.wasmtime",
}
"""Name to module; each has a function ``make(context, options)``."""


def make_driver(name: str, context: Context, options: Mapping[str, Any]) -> Driver:
    """The driver called ``name``. Raises :class:`InvalidArgument` naming what is wrong with name or options."""
    module = DRIVERS.get(name)
    if module is None:
        raise InvalidArgument(f"driver: {name!r} is none of {', '.join(sorted(DRIVERS))}", field="driver")
    driver: Driver = importlib.import_module(module).make(context, options)
    return driver
