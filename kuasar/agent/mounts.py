"""Root file systems: the mounts that the snapshotter asks for, made in the agent's own mount namespace.

Nothing mounted here is seen by the host, and all of it is gone with the agent.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kuasar.agent import kernel
from kuasar.core.errors import BackendFailed, InvalidArgument, Unimplemented

_MAX_DATA = 4095
"""mount(2) copies one page of options, with a zero byte at its end."""

# option -> (flags to set, flags to clear)
_FLAGS: Mapping[str, tuple[int, int]] = {
    "ro": (kernel.MS_RDONLY, 0),
    "rw": (0, kernel.MS_RDONLY),
    "nosuid": (kernel.MS_NOSUID, 0),
    "suid": (0, kernel.MS_NOSUID),
    "nodev": (kernel.MS_NODEV, 0),
    "dev": (0, kernel.MS_NODEV),
    "noexec": (kernel.MS_NOEXEC, 0),
    "exec": (0, kernel.MS_NOEXEC),
    "sync": (0x10, 0),
    "async": (0, 0x10),
    "mand": (0x40, 0),
    "nomand": (0, 0x40),
    "dirsync": (0x80, 0),
    "noatime": (0x400, 0),
    "atime": (0, 0x400),
    "nodiratime": (0x800, 0),
    "diratime": (0, 0x800),
    "bind": (kernel.MS_BIND, 0),
    "rbind": (kernel.MS_BIND | kernel.MS_REC, 0),
    "relatime": (0x200000, 0),
    "norelatime": (0, 0x200000),
    "strictatime": (0x1000000, 0),
    "nostrictatime": (0, 0x1000000),
    "lazytime": (0x2000000, 0),
    "nolazytime": (0, 0x2000000),
    "defaults": (0, 0),
    # Propagation makes no difference to a root file system: the namespace is a slave and the container's is private.
    **dict.fromkeys(("private", "rprivate", "slave", "rslave", "unbindable", "runbindable"), (0, 0)),
}


@dataclass(frozen=True)
class Options:
    """Mount options, taken apart."""

    flags: int
    data: tuple[str, ...]
    """What the file system itself has to understand."""


def parse_options(options: Iterable[str], field: str) -> Options:
    """Sort options into flags and data. Later ones win over earlier ones."""
    flags, data = 0, []
    for option in options:
        if option in _FLAGS:
            added, cleared = _FLAGS[option]
            flags = (flags | added) & ~cleared
        elif option in ("shared", "rshared"):
            raise InvalidArgument(f"{field}: {option}: a sandbox's mounts cannot be shared with the host", field=field)
        elif option == "loop" or option.startswith("loop="):
            raise Unimplemented(
                f"{field}: {option}: image files behind loop devices are not mounted", capability="loop"
            )
        elif option:
            data.append(option)
    return Options(flags, tuple(data))


def mount_rootfs(mounts: list[Any], target: str) -> int:
    """Stack ``mounts`` (maps of type, source, target, options) on the directory ``target``; undoes all on failure.

    Gives how many were made. Raises :class:`InvalidArgument` naming the field, :class:`BackendFailed` with the kernel's
    reason.
    """
    made = 0
    try:
        for index, each in enumerate(mounts):
            _mount_one(each, target, f"rootfs[{index}]")
            made += 1
    except BaseException:
        unmount_all(target, made)
        raise
    return made


def unmount_all(target: str, count: int = 1) -> None:
    """Unmount whatever is mounted on ``target``, at least ``count`` times; harmless when nothing is."""
    while True:
        try:
            kernel.umount(target)
        except OSError as exc:
            if exc.errno in (errno.EINVAL, errno.ENOENT):
                return  # no mount point (any more)
            raise BackendFailed(f"cannot unmount {target}: {exc.strerror}", errno=exc.errno) from exc
        count -= 1


def _mount_one(each: Any, rootfs: str, field: str) -> None:
    if not isinstance(each, dict):
        raise InvalidArgument(f"{field}: a map is needed", field=field)
    kind, source, below = (_text(each, name, field) for name in ("type", "source", "target"))
    options = each.get("options") or []
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise InvalidArgument(f"{field}.options: a list of strings is needed", field=f"{field}.options")
    parsed = parse_options(options, f"{field}.options")
    target = _below(rootfs, below, f"{field}.target")
    try:
        if kind == "overlay":
            _mount_overlay(source, target, parsed)
        elif kind in ("bind", "rbind") or parsed.flags & kernel.MS_BIND:
            _mount_bind(source, target, parsed, kind == "rbind")
        else:
            kernel.mount(source, target, kind, parsed.flags, _joined(parsed.data, field))
    except OSError as exc:
        raise BackendFailed(
            f"{field}: cannot mount {kind} {source} on {target}: {exc.strerror}", errno=exc.errno, field=field
        ) from exc


def _text(each: dict[str, Any], name: str, field: str) -> str:
    value = each.get(name, "")
    if not isinstance(value, str) or "\0" in value:
        raise InvalidArgument(f"{field}.{name}: a string is needed", field=f"{field}.{name}")
    return value


def _below(rootfs: str, target: str, field: str) -> str:
    """``target`` inside ``rootfs``, which no ``..`` and no symbolic link in the image may leave."""
    if not target or target == "/":
        return rootfs
    path = os.path.realpath(os.path.join(rootfs, target.lstrip("/")))
    if os.path.commonpath([path, os.path.realpath(rootfs)]) != os.path.realpath(rootfs):
        raise InvalidArgument(f"{field}: {target!r} leads out of the root file system", field=field)
    return path


def _mount_bind(source: str, target: str, options: Options, recursive: bool) -> None:
    if options.data:
        raise InvalidArgument(f"rootfs: a bind mount has no option {options.data[0]!r}", field="rootfs")
    flags = options.flags | kernel.MS_BIND | (kernel.MS_REC if recursive else 0)
    kernel.mount(source, target, "", flags & (kernel.MS_BIND | kernel.MS_REC))
    rest = flags & ~(kernel.MS_BIND | kernel.MS_REC)
    if rest:  # a bind mount takes its flags only when it is mounted once more
        try:
            kernel.mount("", target, "", kernel.MS_BIND | kernel.MS_REMOUNT | rest)
        except OSError:
            kernel.umount(target)
            raise


def _mount_overlay(source: str, target: str, options: Options) -> None:
    data = ",".join(options.data)
    if len(os.fsencode(data)) <= _MAX_DATA:
        kernel.mount(source, target, "overlay", options.flags, data)
        return
    common, shortened = shorten(options.data)
    if len(os.fsencode(",".join(shortened))) <= _MAX_DATA:
        here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.chdir(common)  # the agent has one thread: nobody else sees it
            kernel.mount(source, target, "overlay", options.flags, ",".join(shortened))
        finally:
            os.fchdir(here)
            os.close(here)
        return
    kernel.mount_by_parameters("overlay", target, options.flags, _parameters(source, options.data))


def shorten(data: Iterable[str]) -> tuple[str, tuple[str, ...]]:
    """The directory that all lower layers share, and the options with those layers relative to it."""
    lower = next((option for option in data if option.startswith("lowerdir=")), "lowerdir=/")
    layers = lower.removeprefix("lowerdir=").split(":")
    common = os.path.commonpath(layers) if all(map(os.path.isabs, layers)) else "/"
    if common in layers:
        common = os.path.dirname(common)
    relative = ":".join(os.path.relpath(layer, common) if os.path.isabs(layer) else layer for layer in layers)
    return common, tuple(f"lowerdir={relative}" if option == lower else option for option in data)


def _parameters(source: str, data: Iterable[str]) -> list[tuple[str, str | None]]:
    """One parameter per layer (Linux 6.5): a single one may not be longer than 256 bytes."""
    found: list[tuple[str, str | None]] = [("source", source)]
    for option in data:
        name, equals, value = option.partition("=")
        if name == "lowerdir":
            found += [("lowerdir+", layer) for layer in value.split(":")]
        else:
            found.append((name, value if equals else None))
    return found


def _joined(data: tuple[str, ...], field: str) -> str:
    text = ",".join(data)
    if len(os.fsencode(text)) > _MAX_DATA:
        raise InvalidArgument(f"{field}.options: longer than the {_MAX_DATA} bytes the kernel takes", field=field)
    return text
