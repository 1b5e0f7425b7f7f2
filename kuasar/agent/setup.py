"""What a pod's namespaces need before the first container: host name, kernel parameters, shared memory."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable, Mapping
from typing import Any

from kuasar.agent import kernel
from kuasar.core.errors import BackendFailed, InvalidArgument

_MAX_HOSTNAME = 64
_SHM_FLAGS = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
_KEY = re.compile(r"[A-Za-z0-9_]+(?:[./][A-Za-z0-9_:@-]+)+")
_IPC_KEYS = frozenset(
    {"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax"}
    | {"kernel.shmmni", "kernel.shm_rmid_forced"}
)


def set_hostname(name: str) -> None:
    """Name the pod; the empty name leaves it as it is."""
    if len(os.fsencode(name)) > _MAX_HOSTNAME:
        raise InvalidArgument(f"hostname: {len(name)} characters, at most {_MAX_HOSTNAME}", field="hostname")
    if name:
        try:
            socket.sethostname(name)
        except OSError as exc:
            raise BackendFailed(f"cannot set the hostname to {name!r}: {exc.strerror}", errno=exc.errno) from exc


def set_sysctls(values: Mapping[Any, Any], shares_with_host: Callable[[str], bool]) -> None:
    """Write kernel parameters that belong to the pod's namespaces.

    ``shares_with_host(kind)`` tells of a namespace kind. Raises :class:`InvalidArgument` naming the key, before
    anything is written, for a parameter of the whole host and for one of a namespace that the pod shares with the host.
    """
    paths = {}
    for key, value in values.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidArgument(f"sysctls.{key}: names and values must be strings", field=f"sysctls.{key}")
        paths[key] = sysctl_path(key, shares_with_host)
    for key, path in paths.items():
        try:
            with open(path, "w", encoding="ascii", errors="strict") as file:
                file.write(values[key])
        except (OSError, UnicodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "not ASCII"
            raise InvalidArgument(
                f"sysctls.{key}: the kernel refuses {values[key]!r:.80}: {reason}", field=f"sysctls.{key}"
            ) from exc


def sysctl_path(key: str, shares_with_host: Callable[[str], bool]) -> str:
    """The file of a parameter that a pod may set; :class:`InvalidArgument` for any other."""
    field = f"sysctls.{key}"
    if not _KEY.fullmatch(key):
        raise InvalidArgument(f"{field}: is no name of a kernel parameter", field=field)
    # A name is spelt with dots or with slashes; the first separator tells (an interface name may contain dots).
    first = next(character for character in key if character in "./")
    parts = key.split(first)
    dotted = ".".join(parts)
    if parts[0] == "net":
        kind = "net"
    elif dotted in _IPC_KEYS or dotted.startswith("fs.mqueue."):
        kind = "ipc"
    else:
        raise InvalidArgument(f"{field}: belongs to the whole host, a pod cannot set it", field=field)
    if shares_with_host(kind):
        raise InvalidArgument(f"{field}: the pod uses the host's {kind} namespace", field=field)
    return "/proc/sys/" + "/".join(part.replace("/", ".") for part in parts)


def mount_shm(path: str, size: int) -> None:
    """A tmpfs of ``size`` bytes at ``path`` (made if need be), which the containers of the pod share. Mounting it
    again does nothing."""
    try:
        os.makedirs(path, 0o1777, exist_ok=True)
        if not os.path.ismount(path):
            kernel.mount("shm", path, "tmpfs", _SHM_FLAGS, f"mode=1777,size={size}")
    except OSError as exc:
        hint = "; the size is refused" if exc.errno == errno.EINVAL else ""
        raise BackendFailed(f"cannot mount shared memory on {path}: {exc.strerror}{hint}", errno=exc.errno) from exc
