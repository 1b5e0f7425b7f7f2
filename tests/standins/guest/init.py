"""``python -m tests.standins.guest.init JSON``: the guest's first process: namespaces, a view of its own, the agent.

Writes ``pid <number on the host>`` first. Ends when the agent does; everything in it dies with it, and it dies with the
VMM.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

from kuasar.agent import kernel
from kuasar.core.aio import Loop
from kuasar.core.cgroup import Hierarchies, current
from kuasar.core.errors import DeadlineExceeded
from kuasar.core.trees import mounts_below

T = TypeVar("T")
DIRECTORY = "/run/kuasar"
_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
_NEWPID, _NEWNET = 0x20000000, 0x40000000
_PR_SET_PDEATHSIG = 1
_HOSTS = ("/sys", "/run", "/var", "/tmp", "/mnt", "/work")
_POLL_SECONDS = 0.02
_SECTOR = 512


def main() -> int:
    """Outside: the parent of the first process."""
    settings = json.loads(sys.argv[1])
    _die_with_parent()
    _enter_unified()
    kernel.unshare(_NEWNS | _NEWCGROUP | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET)
    pid = os.fork()
    if pid == 0:
        _be_first(settings)
    os.write(1, f"pid {pid}\n".encode())
    os.close(settings["listen"])
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _enter_unified() -> None:
    """On a hybrid host the VMM is in its cgroup of version 1 alone; what crun makes in the other one shall be there,
    too."""
    roots = current()
    if not roots.controllers or not roots.unified:
        return
    with open("/proc/self/cgroup", encoding="ascii") as file:
        paths = [line.strip().split(":", 2)[2] for line in file]
    for path in paths:
        if path != "/" and os.path.isdir(roots.unified + path):
            with open(f"{roots.unified}{path}/cgroup.procs", "w", encoding="ascii") as file:
                file.write("0")
            return


def _be_first(settings: dict[str, Any]) -> NoReturn:
    code = 70
    try:
        _die_with_parent()
        os.setsid()
        here = os.open(settings["directory"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        _mount_all()
        _replace_hardware(here)
        code = _run_agent(settings)
    except BaseException:
        traceback.print_exc()
    finally:
        os.write(1, f"kuasar-guest: end: the agent exited with {code}\n".encode())
        os._exit(code & 0xFF)


def _run_agent(settings: dict[str, Any]) -> int:
    from guest.pid1.machine import bring_loopback_up
    from kuasar.agent.main import run

    bring_loopback_up()
    os.write(1, b"kuasar-guest: ready\n")
    arguments = {
        "sandbox_id": "guest",
        "directory": DIRECTORY,
        "netns": "",
        "host_namespaces": [],
        "pid_namespace": False,
        "driver": "oci",
        "options": {"binary": "/usr/bin/crun"},
        "log_level": "info",
    }
    return run(arguments, settings["listen"], _Machine())


class _Machine:
    """See ``kuasar.agent.machine``."""

    def load_module(self, name: str) -> None:
        raise FileNotFoundError(name)

    def attach(self, loop: Loop) -> None:
        """Nothing has to be carried."""


def _mount_all() -> None:
    """As ``guest/pid1/machine.py`` does, over this host's root; nothing of the host's mounts is held."""
    roots = current()
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    for top in _HOSTS:
        for path in mounts_below(top):
            with suppress(OSError):
                kernel.umount(path)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("proc", "/proc", "proc", flags | kernel.MS_NOEXEC)
    kernel.mount("run", "/run", "tmpfs", flags, "mode=0755")
    os.mkdir(DIRECTORY, 0o700)
    # Of this network namespace, and read-only: nothing here may change this host.
    kernel.mount("sysfs", "/sys", "sysfs", flags | kernel.MS_NOEXEC | kernel.MS_RDONLY)
    _mount_cgroups(roots)
    current.cache_clear()
    kernel.mount("devpts", "/dev/pts", "devpts", kernel.MS_NOSUID, "newinstance,gid=0,mode=0620,ptmxmode=0666")
    if os.path.isdir("/dev/mqueue"):
        kernel.mount("mqueue", "/dev/mqueue", "mqueue", flags)


def _mount_cgroups(roots: Hierarchies) -> None:
    """The hierarchies as they are seen from the VMM's own cgroup."""
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    if not roots.controllers:
        kernel.mount("cgroup2", "/sys/fs/cgroup", "cgroup2", flags)
        return
    kernel.mount("tmpfs", "/sys/fs/cgroup", "tmpfs", flags, "mode=0755")
    by_root: dict[str, list[str]] = {}
    for controller, root in roots.controllers.items():
        by_root.setdefault(root, []).append(controller)
    for root, controllers in by_root.items():
        target = f"/sys/fs/cgroup/{os.path.basename(root)}"
        os.mkdir(target)
        named = [name for name in controllers if name.startswith("name=")]
        kernel.mount("cgroup", target, "cgroup", flags, ",".join([*(["none"] if named else []), *controllers]))


def _replace_hardware(here: int) -> None:
    """Disks are what the VMM says, looked at again and again; the clock is this host's."""
    from kuasar.agent.guest import disks, rest, uevents

    def known() -> dict[str, Any]:
        fd = os.open("disks.json", os.O_RDONLY | os.O_CLOEXEC, dir_fd=here)
        with open(fd, encoding="ascii") as file:
            found: dict[str, Any] = json.load(file)
        return found

    def by_name(name: str) -> dict[str, Any]:
        return next((each for each in known().values() if each["name"] == name), {})

    async def until(
        self: uevents.Uevents, look: Callable[[], T | None], deadline: float | None, what: Callable[[], str]
    ) -> T:
        limit = time.monotonic() + 30.0 if deadline is None else deadline
        while (found := look()) is None:
            if time.monotonic() + _POLL_SECONDS >= limit:
                raise DeadlineExceeded(what())
            await self._loop.sleep(_POLL_SECONDS)
        return found

    def find(serial: str) -> str | None:
        disk = known().get(serial)
        return f"/dev/{disk['name']}" if disk else None

    disks._find = find
    disks._serial_of = lambda name: next((key for key, each in known().items() if each["name"] == name), "")
    disks.is_read_only = lambda device: bool(by_name(os.path.basename(device)).get("read_only"))
    uevents.Uevents.until = until  # type: ignore[method-assign]  # no device of a machine is told of here
    rest.rest = lambda: 0  # the memory is this host's, too: nothing is filled with zeros here
    time.clock_settime_ns = _leave_clock  # type: ignore[assignment]  # this host's clock is right


def _leave_clock(clock: int, nanoseconds: int) -> None:
    """It is the host's."""


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
