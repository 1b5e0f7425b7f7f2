"""The directory that a microVM's pod shares with its host, and the process that serves it (virtiofsd).

``<sandbox directory>/shared`` is a mount of its own, *shared* in the sense of mount propagation: virtiofsd lives in a
mount namespace that is its slave, so what the worker mounts below it later appears there, whatever the host's root is.
Every mount is in the record before it is made. Below it: ``files`` (the pod's own) and ``<container id>``.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import partial

from kuasar.agent import kernel, mounts
from kuasar.backends.base import ROOT, Host, User
from kuasar.backends.processes import HeldProcess, open_log
from kuasar.backends.sockets import connect, listen
from kuasar.core.errors import BackendFailed, InvalidArgument, wrap

TAG = "kuasar"
GUEST_DIRECTORY = "/run/kuasar/shared"
"""Where the agent mounts it."""
SOCKET = "virtiofsd.sock"
"""In the sandbox directory."""
_OCTAL = re.compile(r"\\([0-7]{3})")
_OPTIONS = "sandbox=namespace,xattr,announce_submounts,flock,cache=auto,posix_acl"


def mounts_of_host() -> dict[str, str]:
    """Mount point -> ``type options`` of everything mounted where we are."""
    return {point: f"{kind} {options}" for point, kind, _, options in _mount_table()}


def erofs_images() -> dict[str, str]:
    """Mount point -> device or image file of every erofs that is mounted where we are."""
    return {point: source for point, kind, source, _ in _mount_table() if kind == "erofs"}


def _mount_table() -> Iterator[tuple[str, str, str, str]]:
    """Mount point, type, source and options."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.rstrip("\n").partition(" - ")
            kind, source, options = after.split(" ", 2)
            yield _plain(before.split(" ")[4]), kind, _plain(source), options


def _plain(path: str) -> str:
    """A path as mountinfo spells it, without the escapes."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), path)


class Share:
    """The share of one pod. Opened by the first worker, adopted by the next ones, freed by :meth:`release`."""

    def __init__(self, host: Host, binary: str, socket_directory: str = "", owner: User = ROOT) -> None:
        """``socket_directory``: where the server's socket is (empty: in the sandbox directory), and ``owner`` who may
        connect to it, for a VMM that does it by itself."""
        self._host = host
        self._binary = binary
        self._socket_directory = socket_directory or host.directory
        self._owner = owner
        self._daemon = HeldProcess(host, "virtiofsd")
        self.directory = f"{host.directory}/shared"

    @property
    def daemon(self) -> HeldProcess:
        """The process that serves the share."""
        return self._daemon

    def open(self, cgroup: str, log_path: str) -> None:
        """Make the directory and start its server. Undone by :meth:`release`."""
        self._host.acquiring("mount", self.directory)
        try:
            os.makedirs(self.directory, mode=0o755, exist_ok=True)
            if not os.path.ismount(self.directory):
                kernel.mount(self.directory, self.directory, "", kernel.MS_BIND)
                kernel.mount("", self.directory, "", kernel.MS_PRIVATE)
                kernel.mount("", self.directory, "", kernel.MS_SHARED)
            self.bind(f"{self._host.directory}/files", "files", read_only=False)
        except OSError as exc:
            raise wrap(exc, "cannot make the directory that is shared with the machine") from exc
        with listen(self._socket_directory, SOCKET, self._owner.uid) as listener, open_log(log_path) as log_file:
            argv = [self._binary, "--fd=3", "-o", f"source={self.directory},{_OPTIONS}"]
            self._daemon.take(partial(self._host.start_program, argv, log_file.fileno(), [listener.fileno()], cgroup))

    def connect(self) -> socket.socket:
        """The connection that the VMM speaks vhost-user on; virtiofsd takes exactly one."""
        return connect(self._socket_directory, SOCKET, "virtiofsd")

    def adopt(self) -> bool:
        """Take over the server of an earlier worker."""
        return self._daemon.adopt()

    # -- what is in it -----------------------------------------------------------------------------------------------

    def bind(self, source: str, name: str, *, read_only: bool, slave: bool = False) -> str:
        """Show ``source``, a directory or regular file with all that is mounted below it, as ``name``; gives its path
        in the guest. ``slave``: what the host mounts below it later is shown, too."""
        target = f"{self.directory}/{name}"
        kind = "the directory" if os.path.isdir(source) else "the file"
        if target in self._mounts():
            return f"{GUEST_DIRECTORY}/{name}"  # by an earlier worker, or for the same request
        try:
            self._make_mount_point(source, target)
            self._host.acquiring("mount", target)
            kernel.bind_tree(source, target, kernel.MS_SLAVE if slave else kernel.MS_PRIVATE, read_only)
        except OSError as exc:
            raise wrap(exc, f"cannot share {kind} {source} with the machine") from exc
        return f"{GUEST_DIRECTORY}/{name}"

    def _mounts(self) -> Collection[str]:
        """What is mounted. Raises :class:`BackendFailed` when the share is not: nothing new would be seen in it."""
        mounted = mounts_of_host()
        if self.directory not in mounted:
            raise BackendFailed(
                f"the directory that is shared with the machine, {self.directory}, has been unmounted: the machine "
                "sees nothing new in it; make the pod anew"
            )
        return mounted

    def _make_mount_point(self, source: str, target: str) -> None:
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        if os.path.isdir(source):
            os.makedirs(target, mode=0o755, exist_ok=True)
        else:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))

    def mount_rootfs(self, rootfs: list[object], name: str) -> str:
        """Stack the mounts of a root file system as ``name``; gives its path in the guest."""
        target = f"{self.directory}/{name}"
        mounted = target in self._mounts()
        os.makedirs(target, mode=0o755, exist_ok=True)
        self._host.acquiring("mount", target)
        if not mounted:
            mounts.mount_rootfs(rootfs, target, _layers(target))
        return f"{GUEST_DIRECTORY}/{name}"

    def remove(self, name: str) -> None:
        """Take away everything called ``name`` or below it. Raises :class:`BackendFailed` naming what cannot be."""
        top = f"{self.directory}/{name}"
        self._unmount(top)
        _remove_tree(top)

    def _unmount(self, top: str) -> None:
        """All recorded mounts at or below ``top``, newest first."""
        for kind, path in reversed(self._host.holdings()):
            if kind == "mount" and (path == top or path.startswith(f"{top}/")):
                mounts.unmount_rootfs(path, _layers(path))
                self._host.released(kind, path)

    # -- the end -------------------------------------------------------------------------------------------------------

    async def release(self, deadline: float) -> None:
        """End the server and free every mount; harmless to repeat."""
        if self._daemon.alive:
            await self._daemon.kill(deadline)
        self._daemon.release()
        self._unmount(self.directory)
        _remove_tree(self.directory)
        with suppress(FileNotFoundError):
            os.unlink(f"{self._socket_directory}/{SOCKET}")


def _layers(target: str) -> str:
    """Where mounts that others of the same root file system refer to are."""
    return f"{target}.layers"


def _remove_tree(top: str) -> None:
    """Directories and mount points that are empty now. Never follows into what is still mounted: that is an error."""
    try:
        for parent, folders, names in os.walk(top, topdown=False):
            for name in names:
                path = f"{parent}/{name}"
                if os.path.getsize(path):
                    raise BackendFailed(f"{path} is not empty: something is still mounted there")
                os.unlink(path)
            for name in folders:
                os.rmdir(f"{parent}/{name}")
        with suppress(FileNotFoundError):
            os.rmdir(top)
    except OSError as exc:
        raise wrap(exc, f"cannot remove {top}") from exc


def require_shareable(source: str, field: str) -> None:
    """Raise :class:`InvalidArgument` for what a share cannot carry, saying why."""
    import stat

    try:
        mode = os.stat(source).st_mode
    except OSError as exc:
        raise InvalidArgument(f"{field}: {source}: {exc.strerror}", field=field) from exc
    refusals = {
        stat.S_IFSOCK: "is a socket: its other end is in the host's kernel, which a virtual machine does not share",
        stat.S_IFIFO: "is a FIFO: its other end is in the host's kernel, which a virtual machine does not share",
        stat.S_IFCHR: "is a character device of the host, which a virtual machine does not have",
    }
    words = refusals.get(stat.S_IFMT(mode))
    if words:
        raise InvalidArgument(f"{field}: {source} {words}", field=field)
