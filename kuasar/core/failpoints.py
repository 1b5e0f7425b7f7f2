"""Failpoints: named places in our processes where a test makes them fail, die, stall, or only count.

``failpoint("record.cgroup")`` does nothing, at the price of one comparison, unless the configuration says
``[debug] failpoints = true``. Then the point is armed, across all processes and namespaces, by a file of its name in
``<state dir>/failpoints``. The file says what happens::

    error                     raise BackendFailed
    oserror:28                raise OSError with this errno (28: no space left)
    kill                      end this process at once, as kill -9 does
    hang:2.5                  stop the whole process for so many seconds, at most 60
    count                     nothing

followed by ``skip=N`` (the first N hits pass) and ``times=N`` (only so many act; default: all). Every hit of an armed
point adds a byte to ``hits/<name>`` beside it, in one atomic step, so that hits are counted over all processes.
docs/failpoints.md lists the points.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

from kuasar.core import log
from kuasar.core.errors import BackendFailed, InvalidArgument

LONGEST_HANG_SECONDS = 60.0
_EVER = 1 << 62
_EXIT_KILLED = 137
_MAX_BYTES = 256

_directory = ""


@dataclass(frozen=True)
class Action:
    """What an armed point does, from the ``skip``-th hit on, ``times`` times."""

    verb: str
    argument: float = 0.0
    skip: int = 0
    times: int = _EVER

    @classmethod
    def parse(cls, text: str) -> Action:
        """From the content of an arming file. Raises :class:`InvalidArgument`."""
        words = text.split()
        try:
            verb, _, argument = words[0].partition(":")
            options = dict(word.split("=", 1) for word in words[1:])
            numbers = {name: int(value) for name, value in options.items()}
            action = cls(verb, float(argument or 0), **numbers)
        except (IndexError, ValueError, TypeError) as exc:
            raise InvalidArgument(f"failpoint: {text!r:.100} says nothing that can be done", field="failpoint") from exc
        if verb not in ("error", "oserror", "kill", "hang", "count"):
            raise InvalidArgument(f"failpoint: unknown action {verb!r}", field="failpoint")
        return action


def configure(directory: str) -> None:
    """Look for armed points in ``directory`` from now on; empty: nowhere."""
    global _directory
    _directory = directory


def failpoint(name: str) -> None:
    """A place called ``name``: does what an arming file says."""
    if _directory:
        _hit(name)


def _hit(name: str) -> None:
    text = _read(f"{_directory}/{name}")
    if text is None:
        return
    action = Action.parse(text)
    number = _count(name)
    if not action.skip <= number < action.skip + action.times:
        return
    log.warning("failpoint", point=name, action=text.strip(), hit=number)
    _act(name, action)


def _act(name: str, action: Action) -> None:
    if action.verb == "error":
        raise BackendFailed(f"failpoint {name}", failpoint=name)
    if action.verb == "oserror":
        raise OSError(int(action.argument), f"{os.strerror(int(action.argument))} (failpoint {name})")
    if action.verb == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
        os._exit(_EXIT_KILLED)  # the first process of a pid namespace cannot kill itself
    if action.verb == "hang":
        time.sleep(min(action.argument, LONGEST_HANG_SECONDS))


def _read(path: str) -> str | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, _MAX_BYTES).decode(errors="replace")
    finally:
        os.close(fd)


def _count(name: str) -> int:
    """The number of this hit, from 0, among those of all processes."""
    os.makedirs(f"{_directory}/hits", mode=0o700, exist_ok=True)
    fd = os.open(f"{_directory}/hits/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, b".")
        return os.lseek(fd, 0, os.SEEK_CUR) - 1  # an appending write moves the position to its own end
    finally:
        os.close(fd)
