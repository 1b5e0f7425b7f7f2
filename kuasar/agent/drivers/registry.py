"""The table of container drivers: one line here is how a driver joins the agent. Each is imported on first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kuasar.agent.drivers.base import Driver
from kuasar.core.aio import Loop
from kuasar.core.errors import InvalidArgument
from kuasar.core.spawn import Children


@dataclass(frozen=True)
class Context:
    """What the agent lends to its driver."""

    loop: Loop
    children: Children
    directory: str
    """The sandbox directory."""


def _make_oci(context: Context, options: Mapping[str, Any]) -> Driver:
    from kuasar.agent.drivers.oci import OciDriver

    return OciDriver(
        context.loop, context.children, f"{context.directory}/oci", _require_text(options, "binary", default="runc")
    )


def _make_wasmtime(context: Context, options: Mapping[str, Any]) -> Driver:
    from kuasar.agent.drivers.wasmtime import WasmtimeDriver

    return WasmtimeDriver(context.loop, _require_text(options, "cache_dir"))


DRIVERS: Mapping[str, Callable[[Context, Mapping[str, Any]], Driver]] = {
    "oci": _make_oci,
    "wasmtime": _make_wasmtime,
}


def make_driver(name: str, context: Context, options: Mapping[str, Any]) -> Driver:
    """The driver called ``name``. Raises :class:`InvalidArgument` naming what is wrong with name or options."""
    factory = DRIVERS.get(name)
    if factory is None:
        raise InvalidArgument(f"driver: {name!r} is none of {', '.join(sorted(DRIVERS))}", field="driver")
    return factory(context, options)


def _require_text(options: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = options.get(name) or default
    if not isinstance(value, str):
        raise InvalidArgument(f"options.{name}: a string is needed, got {value!r:.80}", field=f"options.{name}")
    return value
