"""The file system of a WebAssembly container: a mount namespace of its own, its mounts, its root.

Runs in the container's process, before it gives up its privileges. Every path inside the container is resolved by the
kernel with the root file system as the root (:func:`inside`), so that no symbolic link can lead out of it. All mounts
die with the process: nothing is left to undo.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from kuasar.agent.drivers.wasm import syscalls as sys
from kuasar.agent.drivers.wasm.plan import Mount, Plan
from kuasar.core.errors import BackendFailed, InvalidArgument, KuasarError

DEVICES = ("null", "zero", "full", "random", "urandom")
"""Put into a container's /dev when it has one: harmless, and opened by name by many programs."""

_ATTRIBUTES = {
    "ro": (sys.MOUNT_ATTR_RDONLY, 0),
    "rro": (sys.MOUNT_ATTR_RDONLY, 0),
    "rw": (0, sys.MOUNT_ATTR_RDONLY),
    "nosuid": (sys.MOUNT_ATTR_NOSUID, 0),
    "suid": (0, sys.MOUNT_ATTR_NOSUID),
    "nodev": (sys.MOUNT_ATTR_NODEV, 0),
    "dev": (0, sys.MOUNT_ATTR_NODEV),
    "noexec": (sys.MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, sys.MOUNT_ATTR_NOEXEC),
    "noatime": (sys.MOUNT_ATTR_NOATIME, sys.MOUNT_ATTR_ATIME),
    "relatime": (0, sys.MOUNT_ATTR_ATIME),
    "strictatime": (sys.MOUNT_ATTR_STRICTATIME, sys.MOUNT_ATTR_ATIME),
    "nodiratime": (sys.MOUNT_ATTR_NODIRATIME, 0),
}
_PROPAGATION = {"private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"}
_NOT_DATA = {"bind", "rbind", "defaults", "async", "sync", "tmpcopyup", *_ATTRIBUTES, *_PROPAGATION}


def build(plan: Plan) -> None:
    """Leave the agent's mount namespace and make the container's mounts on its root file system."""
    sys.unshare(sys.CLONE_NEWNS)
    sys.mount(None, "/", None, sys.MS_REC | sys.MS_SLAVE)
    sources = [(mount, _clone_source(mount)) for mount in plan.mounts]  # while "/" is still the host's
    devices = [(name, sys.clone_tree(f"/dev/{name}", recursive=False)) for name in DEVICES if _has_dev(plan)]
    root = _put_root(plan.rootfs)
    with inside(plan.rootfs):
        for mount, tree in sources:
            try:
                _attach(mount, tree)
            except OSError as exc:
                raise _failure(mount, exc) from exc
            if mount.destination == "/dev":
                _attach_devices(devices)
        os.makedirs(plan.cwd, 0o755, exist_ok=True)
    if plan.read_only:  # last, because mount points and the working directory are made on it
        sys.set_mount_attributes(root, sys.MOUNT_ATTR_RDONLY, 0, 0, recursive=False)
    os.close(root)


@contextmanager
def inside(rootfs: str) -> Iterator[None]:
    """While entered, "/" is ``rootfs`` for this process."""
    host = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chroot(rootfs)
        os.chdir("/")
        yield
    finally:
        os.fchdir(host)
        os.chroot(".")
        os.close(host)


def enter(root: str) -> None:
    """Make ``root`` the only one this process has; the host's is gone for good."""
    os.chdir(root)
    sys.pivot_root(".", ".")  # the old root now lies on top of the new one
    sys.unmount(".", sys.MNT_DETACH)
    os.chdir("/")


def open_module(plan: Plan) -> tuple[int, str]:
    """A descriptor of the module file and its path in the container. The caller closes it."""
    with inside(plan.rootfs):
        for path in plan.module_candidates():
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as exc:
                raise BackendFailed(f"cannot read module {path}: {exc.strerror}", errno=exc.errno) from exc
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return fd, path
            os.close(fd)
            raise InvalidArgument(f"process.args: {path} is not a regular file", field="process.args")
    raise InvalidArgument(
        f"process.args: no file {plan.module} in the image (looked for {', '.join(plan.module_candidates())})",
        field="process.args",
    )


def _has_dev(plan: Plan) -> bool:
    return any(mount.destination == "/dev" and mount.type != "bind" for mount in plan.mounts)


def _put_root(rootfs: str) -> int:
    """Make the root file system a mount of its own, so that it can become the root; gives its descriptor."""
    try:
        root = sys.clone_tree(rootfs, recursive=True)
        sys.set_mount_attributes(root, 0, 0, sys.MS_PRIVATE, recursive=True)
        sys.attach_tree(root, rootfs)
    except OSError as exc:
        raise BackendFailed(f"root file system {rootfs}: {exc.strerror}", errno=exc.errno) from exc
    return root


def _clone_source(mount: Mount) -> int | None:
    """A detached mount of what is to be bound, with its flags and propagation; None if nothing is bound."""
    if mount.type != "bind":
        return None
    recursive = "rbind" in mount.options
    try:
        tree = sys.clone_tree(mount.source, recursive)
        follows_host = any(option.endswith(("slave", "shared")) for option in mount.options)
        sys.set_mount_attributes(tree, 0, 0, sys.MS_SLAVE if follows_host else sys.MS_PRIVATE, recursive)
        _set_attributes(tree, mount)
    except OSError as exc:
        raise _failure(mount, exc) from exc
    return tree


def _set_attributes(tree: int, mount: Mount) -> None:
    for option in mount.options:  # one after the other: of contradicting ones the last counts
        attr_set, attr_clr = _ATTRIBUTES.get(option, (0, 0))
        if attr_set or attr_clr:
            sys.set_mount_attributes(tree, attr_set, attr_clr, 0, recursive=option == "rro")


def _attach(mount: Mount, tree: int | None) -> None:
    """Put one mount on its destination, which is made if it is missing."""
    if tree is None:
        os.makedirs(mount.destination, 0o755, exist_ok=True)
        data = ",".join(option for option in mount.options if option not in _NOT_DATA)
        sys.mount(mount.source or mount.type, mount.destination, mount.type, 0, data or None)
        tree = os.open(mount.destination, os.O_PATH | os.O_CLOEXEC)
        _set_attributes(tree, mount)
    else:
        _make_mount_point(mount.destination, stat.S_ISDIR(os.fstat(tree).st_mode))
        sys.attach_tree(tree, mount.destination)
    os.close(tree)


def _attach_devices(devices: list[tuple[str, int]]) -> None:
    for name, tree in devices:
        _make_mount_point(f"/dev/{name}", directory=False)
        sys.attach_tree(tree, f"/dev/{name}")
        os.close(tree)


def _make_mount_point(path: str, directory: bool) -> None:
    if directory:
        os.makedirs(path, 0o755, exist_ok=True)
    elif not os.path.exists(path):
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))


def _failure(mount: Mount, exc: OSError) -> KuasarError:
    what = f"{mount.field}: cannot mount {mount.source or mount.type} on {mount.destination}: {exc.strerror}"
    if isinstance(exc, FileNotFoundError) and mount.type == "bind" and exc.filename == mount.source:
        return InvalidArgument(what, field=f"{mount.field}.source")
    return BackendFailed(what, errno=exc.errno)
