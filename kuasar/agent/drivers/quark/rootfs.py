"""A container's root file system and volumes where Quark looks for them: in our mount namespace, below its root.

Quark leaves the host's root for the sandbox's directory, so nothing else can be reached by it. What is mounted here
later reaches it because the directory is a shared mount. Paths inside an image are resolved by the kernel with the
image as the root, so that no symbolic link in it leads out.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

from kuasar.agent import kernel
from kuasar.agent.drivers.quark.specs import is_bind
from kuasar.agent.mounts import unmount_all
from kuasar.core.errors import BackendFailed, InvalidArgument

_MAX_LINKS = 40


def furnish(source: str, target: str, spec: Mapping[str, Any]) -> None:
    """Show the root file system ``source`` on ``target`` with the bind mounts of ``spec``. Undone by :func:`strip`,
    also after a failure. Raises :class:`InvalidArgument` naming the mount, :class:`BackendFailed`."""
    os.makedirs(target, 0o755, exist_ok=True)
    try:
        kernel.bind_tree(source, target, kernel.MS_SHARED, read_only=False)
    except OSError as exc:
        raise BackendFailed(f"root file system {source}: {exc.strerror}", errno=exc.errno) from exc
    for index, mount in enumerate(spec.get("mounts") or []):
        if is_bind(mount):
            _bind(target, mount, f"mounts[{index}]")


def strip(target: str) -> None:
    """Take away what :func:`furnish` has mounted; harmless when nothing is. Mounts below go with it."""
    unmount_all(target)


def _bind(root: str, mount: Mapping[str, Any], field: str) -> None:
    source, destination = mount.get("source") or "", mount["destination"]
    options = mount.get("options") or []
    if not os.path.lexists(source):
        raise InvalidArgument(f"{field}.source: {source!r} is not there", field=f"{field}.source")
    try:
        path = place(root, destination, os.path.isdir(source))
        follows_host = any(option.endswith(("slave", "shared")) for option in options)
        propagation = kernel.MS_SLAVE if follows_host else kernel.MS_PRIVATE
        kernel.bind_tree(source, path, propagation, read_only="ro" in options or "rro" in options)
    except OSError as exc:
        raise BackendFailed(f"{field}: cannot bind {source} on {destination}: {exc.strerror}") from exc


def place(root: str, destination: str, is_directory: bool) -> str:
    """The path of a mount point inside ``root``, which is made if it is missing. Raises ``OSError``."""
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = _reach(root_fd, destination, is_directory, _MAX_LINKS)
        try:
            return os.readlink(f"/proc/self/fd/{found}")
        finally:
            os.close(found)
    finally:
        os.close(root_fd)


def _reach(root_fd: int, path: str, is_directory: bool, links: int) -> int:
    """A descriptor of ``path``; what is missing of it is made, also behind a link that leads nowhere yet."""
    so_far = ""
    parts = [part for part in path.split("/") if part]
    for number, part in enumerate(parts, 1):
        parent, so_far = so_far, f"{so_far}/{part}"
        try:
            os.close(kernel.open_inside(root_fd, so_far))
        except FileNotFoundError:
            target = _make(root_fd, parent or "/", part, is_directory or number < len(parts))
            if target:
                if not links:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from None
                rest = "/".join([target if target.startswith("/") else f"{parent}/{target}", *parts[number:]])
                return _reach(root_fd, rest, is_directory, links - 1)
    return kernel.open_inside(root_fd, so_far or "/")


def _make(root_fd: int, parent: str, name: str, is_directory: bool) -> str:
    """Make ``name``; if it is a link already, where that leads."""
    directory = kernel.open_inside(root_fd, parent)
    try:
        if is_directory:
            os.mkdir(name, 0o755, dir_fd=directory)
        else:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o644, dir_fd=directory))
    except FileExistsError:
        return os.readlink(name, dir_fd=directory)
    finally:
        os.close(directory)
    return ""
