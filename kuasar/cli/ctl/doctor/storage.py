"""Directories, and what room is left in them; descriptors of the processes that all sandboxes share."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator

from kuasar.cli.ctl import words
from kuasar.cli.ctl.doctor.finding import Finding, failed, passed, warned
from kuasar.cli.ctl.node import listener_pid
from kuasar.core.config import Config

_LOW_BYTES = 64 << 20
_EMPTY_BYTES = 4 << 20
_LOW_INODES = 1000
_USED_SHARE = 0.8


def check(config: Config) -> Iterator[Finding]:
    """All of it."""
    yield _state(config.state_dir)
    for name in ("state_dir", "log_dir", "cache_dir"):
        yield _space(f"space of {name}", getattr(config, name))
    yield _descriptors("descriptors of gateway", lambda: listener_pid(config.gateway.socket))
    # it has become a daemon after it began to listen, so its socket names a process that is gone
    yield _descriptors("descriptors of supervisord", lambda: _noted_pid(f"{config.state_dir}/supervisord.pid"))


def _state(path: str) -> Finding:
    check = "state directory"
    try:
        found = os.stat(path)
    except OSError as exc:
        remedy = "start supervisord with the configuration that kuasar.supervisor.render makes"
        return failed(check, f"{path}: {exc.strerror}", remedy)
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        return failed(check, f"{path} has mode {mode:04o}: others may enter", f"chmod 0700 {path}")
    if found.st_uid != os.geteuid():
        return failed(check, f"{path} belongs to user {found.st_uid}", f"chown {os.geteuid()} {path}")
    return passed(check, f"{path}, mode {mode:04o}")


def _space(check: str, path: str) -> Finding:
    there = path
    while not os.path.exists(there):
        there = os.path.dirname(there)
    found = os.statvfs(there)
    free = found.f_bavail * found.f_frsize
    reason = f"{words.size(free)} free on {there}"
    if free < _EMPTY_BYTES:
        return failed(check, f"{reason}: records and logs cannot be written", f"make room on {there}")
    if found.f_flag & os.ST_RDONLY:
        return failed(check, f"{there} is mounted read-only", f"mount -o remount,rw {there}")
    if free < _LOW_BYTES:
        return warned(check, reason, f"make room on {there}")
    if found.f_files and found.f_favail < _LOW_INODES:
        return warned(check, f"{found.f_favail} inodes free on {there}", f"remove files on {there}")
    return passed(check, reason)


def _noted_pid(path: str) -> int:
    with open(path, encoding="ascii") as file:
        return int(file.read())


def _descriptors(check: str, find_pid: Callable[[], int]) -> Finding:
    """Of one process, against its own limit."""
    try:
        pid = find_pid()
        used = len(os.listdir(f"/proc/{pid}/fd"))
        with open(f"/proc/{pid}/limits", encoding="ascii") as file:
            most = next(int(line.split()[3]) for line in file if line.startswith("Max open files"))
    except (OSError, StopIteration, ValueError) as exc:
        return warned(check, f"the process cannot be looked at: {exc}", "see the check of that process")
    if used > most * _USED_SHARE:
        return warned(check, f"{used} of {most} are used", "raise its limit of open files (LimitNOFILE, ulimit -n)")
    return passed(check, f"{used} of {most} are used")
