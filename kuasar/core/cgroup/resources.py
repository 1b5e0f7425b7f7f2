"""OCI ``LinuxResources`` written into a cgroup, for what does not go through an OCI runtime."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kuasar.core.cgroup.hierarchies import Hierarchies, current
from kuasar.core.errors import BackendFailed, InvalidArgument, NotFound


@dataclass(frozen=True)
class _Setting:
    controller: str
    file: str
    value: str
    field: str


def apply(path: str, resources: Mapping[str, Any], at: Hierarchies | None = None) -> None:
    """Set the limits that ``resources`` names: memory, cpu, cpusets, pids, huge pages and, on version 2, ``unified``.

    Device rules and block I/O are left to OCI runtimes. Raises :class:`InvalidArgument` naming the field when a value
    is of the wrong type or the kernel refuses it, :class:`NotFound` when the cgroup is gone.
    """
    hierarchies = at or current()
    reader = _Reader(resources)
    settings = _version1(reader) if hierarchies.version == 1 else _version2(reader)
    memory = hierarchies.path("memory", path)
    if hierarchies.version == 1 and memory is not None:
        settings = _raise_swap_first(memory, settings)
    for setting in settings:
        directory = hierarchies.path(setting.controller, path)
        if directory is None:
            raise BackendFailed(f"{setting.field}: this host has no {setting.controller} controller mounted")
        _write(f"{directory}/{setting.file}", setting)


class _Reader:
    """Typed access to the map; remembers nothing."""

    def __init__(self, resources: Mapping[str, Any]) -> None:
        self._resources = resources

    def get(self, group: str, name: str, kind: type) -> Any:
        part = self._resources.get(group)
        if part is not None and not isinstance(part, Mapping):
            raise InvalidArgument(f"resources.{group}: a map is needed", field=f"resources.{group}")
        value = (part or {}).get(name)
        if value is not None and type(value) is not kind:
            field = f"resources.{group}.{name}"
            raise InvalidArgument(f"{field}: {kind.__name__} is needed, got {value!r:.80}", field=field)
        return value

    def number(self, group: str, name: str) -> int | None:
        """None where it is absent; 0 means "not set" too, as CRI writes it."""
        value = self.get(group, name, int)
        return value or None

    def text(self, group: str, name: str) -> str | None:
        return self.get(group, name, str) or None

    def huge_pages(self) -> list[tuple[str, int, str]]:
        found = []
        for index, limit in enumerate(self._resources.get("hugepageLimits") or []):
            field = f"resources.hugepageLimits[{index}]"
            if not isinstance(limit, Mapping) or type(limit.get("limit")) is not int:
                raise InvalidArgument(f"{field}: needs pageSize and limit", field=field)
            size = str(limit.get("pageSize"))
            if not size.isalnum():
                raise InvalidArgument(f"{field}.pageSize: {size!r}", field=field)
            found.append((size, limit["limit"], field))
        return found

    def unified(self) -> Mapping[str, Any]:
        values = self._resources.get("unified") or {}
        if not isinstance(values, Mapping):
            raise InvalidArgument("resources.unified: a map is needed", field="resources.unified")
        return values


def _version1(reader: _Reader) -> list[_Setting]:
    files = (
        ("cpu", "shares", "cpu", "cpu.shares"),
        ("cpu", "period", "cpu", "cpu.cfs_period_us"),
        ("cpu", "quota", "cpu", "cpu.cfs_quota_us"),
        ("memory", "limit", "memory", "memory.limit_in_bytes"),
        ("memory", "swap", "memory", "memory.memsw.limit_in_bytes"),
        ("memory", "reservation", "memory", "memory.soft_limit_in_bytes"),
        ("memory", "swappiness", "memory", "memory.swappiness"),
    )
    found = [
        _Setting(controller, file, str(value), f"resources.{group}.{name}")
        for group, name, controller, file in files
        if (value := reader.number(group, name)) is not None
    ]
    if reader.get("memory", "disableOOMKiller", bool):
        found.append(_Setting("memory", "memory.oom_control", "1", "resources.memory.disableOOMKiller"))
    for name in ("cpus", "mems"):
        if text := reader.text("cpu", name):
            found.append(_Setting("cpuset", f"cpuset.{name}", text, f"resources.cpu.{name}"))
    return found + _shared(reader, "limit_in_bytes")


def _raise_swap_first(directory: str, settings: list[_Setting]) -> list[_Setting]:
    """The kernel wants memory.limit <= memsw.limit at every moment: a raise starts with memsw, a cut with memory."""
    swap = next((each for each in settings if each.file == "memory.memsw.limit_in_bytes"), None)
    limit = next((each for each in settings if each.file == "memory.limit_in_bytes"), None)
    if swap is None or limit is None:
        return settings
    try:
        with open(f"{directory}/{swap.file}", encoding="ascii") as file:
            now = int(file.read())
    except (OSError, ValueError):
        return [each for each in settings if each is not swap]  # no swap accounting on this host
    wanted = int(limit.value)
    if 0 <= wanted <= now:
        return settings
    return [swap, *(each for each in settings if each is not swap)]


def _version2(reader: _Reader) -> list[_Setting]:
    found: list[_Setting] = []

    def add(file: str, value: int | str, field: str) -> None:
        found.append(_Setting("", file, "max" if value == -1 else str(value), f"resources.{field}"))

    if shares := reader.number("cpu", "shares"):
        # The range 2..262144 of shares onto the range 1..10000 of weights.
        add("cpu.weight", 1 + (min(max(shares, 2), 262144) - 2) * 9999 // 262142, "cpu.shares")
    quota, period = reader.number("cpu", "quota"), reader.number("cpu", "period")
    if quota or period:
        bandwidth = "max" if quota is None or quota < 0 else str(quota)
        add("cpu.max", f"{bandwidth} {period or 100_000}", "cpu.quota")
    for name in ("cpus", "mems"):
        if text := reader.text("cpu", name):
            add(f"cpuset.{name}", text, f"cpu.{name}")
    limit, swap = reader.number("memory", "limit"), reader.number("memory", "swap")
    if limit:
        add("memory.max", limit, "memory.limit")
    if swap:
        # Version 1 counts memory and swap together, version 2 swap alone.
        add("memory.swap.max", -1 if swap < 0 else max(0, swap - max(limit or 0, 0)), "memory.swap")
    if reservation := reader.number("memory", "reservation"):
        add("memory.low", reservation, "memory.reservation")
    for file, value in reader.unified().items():
        if not isinstance(value, str) or not file.replace("_", "").replace(".", "").isalnum() or file.startswith("."):
            raise InvalidArgument(f"resources.unified.{file}: {value!r:.80}", field=f"resources.unified.{file}")
        add(file, value, f"unified.{file}")
    return found + _shared(reader, "max")


def _shared(reader: _Reader, suffix: str) -> list[_Setting]:
    """What both versions spell almost alike."""
    found = []
    pids = reader.number("pids", "limit")
    if pids is not None:
        found.append(_Setting("pids", "pids.max", "max" if pids < 0 else str(pids), "resources.pids.limit"))
    for size, limit, field in reader.huge_pages():
        found.append(_Setting("hugetlb", f"hugetlb.{size}.{suffix}", str(limit), field))
    return found


def _write(path: str, setting: _Setting) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        if not os.path.isdir(os.path.dirname(path)):
            raise NotFound(f"cgroup {os.path.dirname(path)} does not exist") from exc
        raise BackendFailed(f"{setting.field}: this host has no {setting.file}") from exc
    try:
        os.write(fd, setting.value.encode())
    except OSError as exc:
        raise InvalidArgument(
            f"{setting.field}: the kernel refuses {setting.value} for {path}: {exc.strerror}", field=setting.field
        ) from exc
    finally:
        os.close(fd)
