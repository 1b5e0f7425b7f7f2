"""The OCI specification of a container: read from its bundle, completed with what belongs to the pod."""

from __future__ import annotations

import json
import os
from typing import Any

from kuasar.core.errors import InvalidArgument
from kuasar.workers.files import DESTINATIONS

MAX_SPEC_BYTES = 8 * 1024 * 1024


def read_spec(bundle: str) -> dict[str, Any]:
    """``config.json`` of a bundle. Raises InvalidArgument naming what is wrong with it."""
    if not os.path.isabs(bundle):
        raise InvalidArgument(f"bundle: {bundle!r} is not an absolute path", field="bundle")
    path = os.path.join(bundle, "config.json")
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_SPEC_BYTES + 1)
    except OSError as exc:
        raise InvalidArgument(f"bundle: {path} cannot be read: {exc.strerror}", field="bundle") from exc
    if len(data) > MAX_SPEC_BYTES:
        raise InvalidArgument(f"bundle: {path} is larger than {MAX_SPEC_BYTES} bytes", field="bundle")
    try:
        spec = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise InvalidArgument(f"bundle: {path} is not valid JSON: {exc}", field="bundle") from exc
    _check_shape(spec, path)
    result: dict[str, Any] = spec
    return result


def _check_shape(spec: Any, path: str) -> None:
    """The parts that we and the drivers rely on have the right types."""
    shape: list[tuple[tuple[str, ...], type, bool]] = [
        ((), dict, True),
        (("process",), dict, True),
        (("process", "args"), list, True),
        (("root",), dict, True),
        (("mounts",), list, False),
        (("linux",), dict, False),
        (("linux", "namespaces"), list, False),
        (("linux", "resources"), dict, False),
        (("linux", "cgroupsPath"), str, False),
    ]
    for keys, kind, required in shape:
        value = spec
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if value is None and not required:
            continue
        if not isinstance(value, kind):
            field = ".".join(keys) or "config.json"
            raise InvalidArgument(f"{path}: {field}: {kind.__name__} is needed, got {value!r:.80}", field=field)
    for index, mount in enumerate(spec.get("mounts") or []):
        if not isinstance(mount, dict) or not isinstance(mount.get("destination"), str):
            raise InvalidArgument(f"{path}: mounts[{index}]: needs a destination", field=f"mounts[{index}]")
    if not spec["process"]["args"]:
        raise InvalidArgument(f"{path}: process.args: must not be empty", field="process.args")


def add_pod_mounts(spec: dict[str, Any], files_dir: str, shm_dir: str) -> None:
    """Give the container the pod's hostname, hosts, resolv.conf and, if ``shm_dir``, its shared memory.

    A mount that the container brings itself wins; only containerd's default ``/dev/shm`` (a tmpfs of the container's
    own) is replaced, because the containers of a pod share theirs.
    """
    mounts: list[dict[str, Any]] = spec.get("mounts") or []
    access = "ro" if spec["root"].get("readonly") else "rw"
    taken = {os.path.normpath(mount["destination"]) for mount in mounts}
    mounts += [
        {
            "destination": destination,
            "type": "bind",
            "source": f"{files_dir}/{name}",
            "options": ["rbind", "rprivate", access],
        }
        for name, destination in DESTINATIONS.items()
        if destination not in taken
    ]
    if shm_dir:
        mounts = [mount for mount in mounts if not _is_default_shm(mount)]
        if not any(os.path.normpath(mount["destination"]) == "/dev/shm" for mount in mounts):  # noqa: S108 - the pod's
            mounts.append(
                {
                    "destination": "/dev/shm",  # noqa: S108 - a mount point inside the container
                    "type": "bind",
                    "source": shm_dir,
                    "options": ["rbind", "nosuid", "noexec", "nodev", "rw"],
                }
            )
    spec["mounts"] = mounts


def _is_default_shm(mount: dict[str, Any]) -> bool:
    return os.path.normpath(mount["destination"]) == "/dev/shm" and mount.get("type") == "tmpfs"  # noqa: S108 - see above


def cgroups_path(spec: dict[str, Any]) -> str:
    """``linux.cgroupsPath``, or "" if there is none."""
    return str((spec.get("linux") or {}).get("cgroupsPath") or "")
