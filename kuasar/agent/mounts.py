"""Root file systems: the mounts that the snapshotter asks for, made in the agent's own mount namespace.

Nothing mounted here is seen by the host, and all of it is gone with the agent.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kuasar.agent import kernel
from kuasar.core.errors import BackendFailed, InvalidArgument, Unimplemented

_MAX_DATA = 4095
"""mount(2) copies one page of options, with a zero byte at its end."""

_REFERENCE = re.compile(r"\{\{\s*(?:mount\s+(?P<mount>\d+)|overlay\s+(?P<first>\d+)\s+(?P<last>\d+))\s*\}\}")

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


def is_flag(option: str) -> bool:
    """Whether an option is the kernel's own, rather than one that the file system has to understand."""
    return option in _FLAGS


def mount_rootfs(mounts: list[Any], target: str, layers: str) -> None:
    """Stack ``mounts`` (maps of type, source, target, options) on the directory ``target``; undoes all on failure.

    A mount to which a later one refers as ``{{ mount N }}`` or within ``{{ overlay N M }}`` (containerd's notation) is
    a layer: it is mounted on ``<layers>/N`` instead. Ends with :func:`unmount_rootfs`. Raises :class:`InvalidArgument`
    naming the field, :class:`BackendFailed` with the kernel's reason.
    """
    inner = layer_numbers(mounts)
    try:
        for index, each in enumerate(mounts):
            field = f"rootfs[{index}]"
            if index in inner:
                os.makedirs(f"{layers}/{index}", 0o700)
            place = f"{layers}/{index}" if index in inner else target
            _mount_one(_with_layers(each, index, layers, field), place, field, layers)
    except BaseException:
        unmount_rootfs(target, layers)
        raise


def unmount_rootfs(target: str, layers: str) -> None:
    """Unmount what :func:`mount_rootfs` has mounted; repeating it is harmless."""
    unmount_all(target)
    if os.path.isdir(layers):
        for name in os.listdir(layers):
            unmount_all(f"{layers}/{name}")


def layer_numbers(mounts: list[Any]) -> set[int]:
    """The mounts that others refer to."""
    found: set[int] = set()
    for each in mounts:
        for option in _strings(each):
            for match in _REFERENCE.finditer(option):
                found |= set(_numbers(match))
    return found


def _strings(each: Any) -> list[str]:
    """Source and options of a mount, whatever was given for them."""
    values = [each.get("source"), *(each.get("options") or [])] if isinstance(each, dict) else []
    return [value for value in values if isinstance(value, str)]


def _numbers(match: re.Match[str]) -> range:
    first = int(match["mount"] or match["first"])
    last = int(match["last"] or first)
    return range(first, last + 1) if first <= last else range(first, last - 1, -1)


def _with_layers(each: Any, index: int, layers: str, field: str) -> Any:
    """The mount with its references replaced by the directories of earlier ones."""
    if not any(_REFERENCE.search(text) for text in _strings(each)):
        return each

    def directories(match: re.Match[str]) -> str:
        numbers = _numbers(match)
        if max(numbers) >= index:
            raise InvalidArgument(f"{field}: {match[0]}: refers to no earlier mount", field=field)
        return ":".join(f"{layers}/{number}" for number in numbers)

    options = [_REFERENCE.sub(directories, option) for option in each.get("options") or []]
    return {**each, "source": _REFERENCE.sub(directories, each.get("source") or ""), "options": options}


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


def _mount_one(each: Any, rootfs: str, field: str, layers: str) -> None:
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
            _make_upper(parsed, layers)
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


def _make_upper(options: Options, layers: str) -> None:
    """The two directories of the writable part, where it is on a layer of ours, which may be an empty file system."""
    for option in options.data:
        name, _, path = option.partition("=")
        if name in ("upperdir", "workdir") and path.startswith(f"{layers}/"):
            os.makedirs(path, 0o755, exist_ok=True)


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
