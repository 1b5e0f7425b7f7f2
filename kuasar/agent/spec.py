"""An OCI specification, changed where the agent's view of the machine differs from its caller's.

The caller is on the host and names the pod's namespaces by the agent's host pid; the agent mostly lives in namespaces
of its own. Everything else in the specification stays as it is. What cannot be kept is refused, naming the field. Pure
but for :class:`View`, so that it is tested with specifications alone.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

from kuasar.core.cgroup import expand
from kuasar.core.errors import InvalidArgument, Unimplemented

_NAMESPACE_PATH = re.compile(r"/proc/(\d+)/ns/(\w+)")
_SHARED = ("shared", "rshared")


class View(Protocol):
    """What the agent sees (``agent/pids.py``)."""

    agent: int
    agent_on_host: int

    def to_own(self, host_pid: int) -> int | None:
        """Our number of a process of the host; None if we cannot see it."""


def adapt(spec: dict[str, Any], view: View, rootfs: str, default_cgroup: str) -> dict[str, Any]:
    """A copy of ``spec`` for the driver. Raises :class:`InvalidArgument` or :class:`Unimplemented` naming the field."""
    linux = _map(spec, "linux")
    _refuse_shared_mounts(spec, linux)
    _refuse_user_namespaces(linux)
    cgroup = linux.get("cgroupsPath") or default_cgroup
    if not isinstance(cgroup, str):
        raise InvalidArgument("linux.cgroupsPath: a string is needed", field="linux.cgroupsPath")
    adapted_linux = {**linux, "cgroupsPath": expand(cgroup)}
    if linux.get("namespaces"):
        adapted_linux["namespaces"] = [
            _adapt_namespace(each, view, f"linux.namespaces[{index}]") for index, each in enumerate(linux["namespaces"])
        ]
    return {**spec, "root": {**_map(spec, "root"), "path": rootfs}, "linux": adapted_linux}


def _map(holder: dict[str, Any], name: str) -> dict[str, Any]:
    value = holder.get(name) or {}
    if not isinstance(value, dict):
        raise InvalidArgument(f"{name}: a map is needed, got {value!r:.80}", field=name)
    return value


def _refuse_shared_mounts(spec: dict[str, Any], linux: dict[str, Any]) -> None:
    for index, mount in enumerate(spec.get("mounts") or []):
        field = f"mounts[{index}]"
        if not isinstance(mount, dict):
            raise InvalidArgument(f"{field}: a map is needed", field=field)
        for option in mount.get("options") or []:
            if option in _SHARED:
                raise InvalidArgument(
                    f"{field}.options: {option} on {mount.get('destination')}: a sandbox's mounts do not reach the "
                    "host, so bidirectional mount propagation is impossible (host to container works)",
                    field=f"{field}.options",
                )
    # After the mounts: containerd makes the root shared when one of them is, and that one is what the user wrote.
    if linux.get("rootfsPropagation") in _SHARED:
        raise InvalidArgument(
            f"linux.rootfsPropagation: {linux['rootfsPropagation']}: a sandbox's mounts do not reach the host",
            field="linux.rootfsPropagation",
        )


def _refuse_user_namespaces(linux: dict[str, Any]) -> None:
    for field in ("uidMappings", "gidMappings"):
        if linux.get(field):
            raise Unimplemented(
                f"linux.{field}: user namespaces are not supported", capability="user-namespaces", field=field
            )


def _adapt_namespace(each: Any, view: View, field: str) -> dict[str, Any]:
    if not isinstance(each, dict) or not isinstance(each.get("type"), str):
        raise InvalidArgument(f"{field}: a map with a type is needed, got {each!r:.80}", field=field)
    if each["type"] == "user":
        raise Unimplemented(f"{field}: user namespaces are not supported", capability="user-namespaces", field=field)
    path = each.get("path") or ""
    if not isinstance(path, str):
        raise InvalidArgument(f"{field}.path: a string is needed", field=f"{field}.path")
    match = _NAMESPACE_PATH.fullmatch(path)
    if match is None:
        return each
    host_pid = int(match[1])
    own = view.agent if host_pid == view.agent_on_host else view.to_own(host_pid)
    if own is None:
        raise InvalidArgument(
            f"{field}.path: {path}: process {host_pid} of the host does not belong to this sandbox",
            field=f"{field}.path",
        )
    return {**each, "path": f"/proc/{own}/ns/{match[2]}"}
