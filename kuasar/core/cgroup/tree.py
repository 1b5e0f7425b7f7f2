"""Making, filling, freezing, killing and removing cgroups, in all hierarchies at once."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress

from kuasar.core.aio import Loop
from kuasar.core.cgroup.hierarchies import Hierarchies, current
from kuasar.core.errors import BackendFailed, DeadlineExceeded, NotFound, WrongState

_V2_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids")
_SETTLE_SECONDS = 5.0
_POLL_SECONDS = 0.002
_OWNER = "trusted.kuasar.sandbox"


def create(path: str, at: Hierarchies | None = None) -> None:
    """Make the cgroup, with its parents, in every hierarchy; on version 2 with all controllers that can be had.

    Harmless when it exists. Raises :class:`BackendFailed` after undoing what it had made of the leaf.
    """
    hierarchies = at or current()
    made: list[str] = []
    try:
        for root in hierarchies.roots():
            if _make_below(root, path, hierarchies):
                made.append(root + path)
    except OSError as exc:
        for directory in made:
            with suppress(OSError):
                os.rmdir(directory)
        raise BackendFailed(f"cannot make cgroup {exc.filename}: {exc.strerror}", errno=exc.errno) from exc


def mark(path: str, sandbox: str, at: Hierarchies | None = None) -> None:
    """Write on the cgroup whose it is: one without processes does not tell. Kernels that cannot note it do without."""
    for root in (at or current()).roots():
        with suppress(OSError):
            os.setxattr(root + path, _OWNER, sandbox.encode())


def marked(directory: str) -> str:
    """The sandbox that :func:`mark` has written on a cgroup, given by its directory; empty if none has."""
    try:
        return os.getxattr(directory, _OWNER).decode(errors="replace")
    except OSError:
        return ""


def _make_below(root: str, path: str, hierarchies: Hierarchies) -> bool:
    """Whether the leaf was made by us."""
    version2 = hierarchies.version == 2
    directory, made = root, False
    for part in path.strip("/").split("/"):
        if version2:
            _enable_controllers(directory)
        directory = f"{directory}/{part}"
        try:
            os.mkdir(directory, 0o755)
            made = True
        except FileExistsError:
            made = False
            continue
        if root == hierarchies.controllers.get("cpuset"):
            _inherit_cpuset(directory)
    return made


def _enable_controllers(directory: str) -> None:
    """Each on its own: one that the parent does not hand down must not keep the others away."""
    try:
        available = set(_read(f"{directory}/cgroup.controllers").split())
        enabled = set(_read(f"{directory}/cgroup.subtree_control").split())
    except OSError:
        return
    for controller in _V2_CONTROLLERS:
        if controller in available - enabled:
            with suppress(OSError):
                _write(f"{directory}/cgroup.subtree_control", f"+{controller}")


def _inherit_cpuset(directory: str) -> None:
    """A version 1 cpuset starts empty, and an empty one accepts no process."""
    parent = os.path.dirname(directory)
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not _read(f"{directory}/{name}").strip():
            _write(f"{directory}/{name}", _read(f"{parent}/{name}"))


def exists(path: str, at: Hierarchies | None = None) -> bool:
    """Whether the cgroup exists in any hierarchy."""
    return any(os.path.isdir(directory) for directory in (at or current()).directories(path))


def enter(path: str, pid: int, at: Hierarchies | None = None) -> None:
    """Move process ``pid`` (0: the caller) into the cgroup, in every hierarchy in which that exists.

    Raises :class:`NotFound` if it exists in none or the process is gone.
    """
    found = False
    for directory in (at or current()).directories(path):
        try:
            _write(f"{directory}/cgroup.procs", str(pid))
            found = True
        except FileNotFoundError:
            continue
        except ProcessLookupError as exc:
            raise NotFound(f"process {pid} is gone") from exc
        except OSError as exc:
            raise BackendFailed(f"cannot move {pid} into {directory}: {exc.strerror}", errno=exc.errno) from exc
    if not found:
        raise NotFound(f"cgroup {path} does not exist")


def procs(path: str, at: Hierarchies | None = None) -> list[int]:
    """All processes in the cgroup and below it, as the pid namespace of the caller numbers them; processes that it
    cannot see are left out. Empty when the cgroup is gone."""
    hierarchies = at or current()
    return sorted({pid for directory in _counting(hierarchies, path) for pid in _procs_below(directory) if pid > 0})


def _counting(hierarchies: Hierarchies, path: str) -> Iterable[str]:
    """Directories that together name every process: one hierarchy of version 1 would do if nobody moved processes in
    a single one by hand; two are cheap."""
    names = ("pids", "freezer", "memory") if hierarchies.version == 1 else ("",)
    found = [directory for name in names if (directory := hierarchies.path(name, path))]
    return found[:2] or hierarchies.directories(path)


def _procs_below(directory: str) -> list[int]:
    found: list[int] = []
    for each in _subtree(directory):
        with suppress(OSError):
            found += map(int, _read(f"{each}/cgroup.procs").split())
    return found


def _subtree(directory: str) -> list[str]:
    """The directory and all below it, children after parents."""
    found = [directory]
    for each in found:  # grows while it is walked
        try:
            with os.scandir(each) as entries:
                found += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue
    return found


def kill(path: str, at: Hierarchies | None = None) -> int:
    """SIGKILL everything in the cgroup and below now, frozen or not; the number of processes it was sent to.

    Processes that are being forked at this moment may escape: repeat until 0, as :func:`destroy` does.
    """
    hierarchies = at or current()
    pidfds: dict[int, int] = {}
    try:
        for pid in procs(path, hierarchies):
            with suppress(OSError):
                pidfds[pid] = os.pidfd_open(pid)
        if not pidfds:
            return 0
        _kill_at_once(hierarchies, path)
        # Read once more behind the open pidfds: a number that was reused in between must not be hit.
        for pid in procs(path, hierarchies):
            if pid in pidfds:
                with suppress(OSError):
                    signal.pidfd_send_signal(pidfds[pid], signal.SIGKILL)
        _thaw_subtree(hierarchies, path)  # a frozen process dies when it is thawed
        return len(pidfds)
    finally:
        for fd in pidfds.values():
            os.close(fd)


def _kill_at_once(hierarchies: Hierarchies, path: str) -> None:
    """``cgroup.kill`` takes a whole subtree at once, so that no fork escapes; on hybrid hosts too, where the runtime
    has put the processes into the version 2 hierarchy as well."""
    if hierarchies.unified:
        with suppress(OSError):
            _write(f"{hierarchies.unified}{path}/cgroup.kill", "1")


def _thaw_subtree(hierarchies: Hierarchies, path: str) -> None:
    top = hierarchies.path("freezer", path)
    for directory in _subtree(top) if top else ():
        _set_frozen(hierarchies, path + directory.removeprefix(top or ""), False)


async def destroy(loop: Loop, path: str, deadline: float | None = None, at: Hierarchies | None = None) -> None:
    """Kill everything in the cgroup and remove it with all below it, in every hierarchy. Succeeds when it is gone.

    Raises :class:`WrongState` naming what is left after ``deadline`` (monotonic; 5 s by default).
    """
    hierarchies = at or current()
    deadline = deadline or time.monotonic() + _SETTLE_SECONDS
    while True:
        kill(path, hierarchies)
        left = _remove(hierarchies, path)
        if not left:
            return
        if time.monotonic() >= deadline:
            alive = procs(path, hierarchies)
            raise WrongState(
                f"cgroup {left[0]} cannot be removed: "
                + (f"processes {alive} do not die" if alive else "it stays busy"),
                seen="busy",
                needed="empty",
            )
        await loop.sleep(_POLL_SECONDS)  # version 1 has no event for "empty"


def _remove(hierarchies: Hierarchies, path: str) -> list[str]:
    """Directories that could not be removed."""
    left: list[str] = []
    for top in hierarchies.directories(path):
        for directory in reversed(_subtree(top)):
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                continue
            except OSError as exc:
                if exc.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    raise BackendFailed(f"cannot remove cgroup {directory}: {exc.strerror}", errno=exc.errno) from exc
                left.append(directory)
    return left


async def freeze(loop: Loop, path: str, deadline: float | None = None, at: Hierarchies | None = None) -> None:
    """Stop all processes of the cgroup; returns when they stand still. At ``deadline`` thaws and raises
    :class:`DeadlineExceeded`."""
    hierarchies = at or current()
    deadline = deadline or time.monotonic() + _SETTLE_SECONDS
    _set_frozen(hierarchies, path, True)
    while not _is_frozen(hierarchies, path):
        if time.monotonic() >= deadline:
            _set_frozen(hierarchies, path, False)
            raise DeadlineExceeded(f"cgroup {path} does not freeze")
        await loop.sleep(_POLL_SECONDS)
        if hierarchies.version == 1:
            _set_frozen(hierarchies, path, True)  # a process forked meanwhile keeps it FREEZING until asked again


def thaw(path: str, at: Hierarchies | None = None) -> None:
    """Let the processes of the cgroup go on. Raises :class:`NotFound` when it is gone."""
    _set_frozen(at or current(), path, False, strict=True)


def _set_frozen(hierarchies: Hierarchies, path: str, frozen: bool, strict: bool | None = None) -> None:
    if hierarchies.version == 1:
        directory, name = hierarchies.path("freezer", path), "freezer.state"
        value = "FROZEN" if frozen else "THAWED"
    else:
        directory, name, value = hierarchies.unified + path, "cgroup.freeze", str(int(frozen))
    try:
        if directory is None:
            raise NotFound("this host has no freezer controller mounted")
        _write(f"{directory}/{name}", value)
    except OSError as exc:
        if strict if strict is not None else frozen:
            raise NotFound(f"cgroup {path} cannot be {'frozen' if frozen else 'thawed'}: {exc.strerror}") from exc


def _is_frozen(hierarchies: Hierarchies, path: str) -> bool:
    if hierarchies.version == 1:
        return _read(f"{hierarchies.path('freezer', path)}/freezer.state").strip() == "FROZEN"
    return "frozen 1" in _read(f"{hierarchies.unified}{path}/cgroup.events")


def _read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = []
        while chunk := os.read(fd, 65536):
            chunks.append(chunk)
        return b"".join(chunks).decode()
    finally:
        os.close(fd)


def _write(path: str, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)
