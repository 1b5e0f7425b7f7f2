"""A program of a sandbox (a VMM, a file server) in its surroundings: cgroup, network, user; then it is executed.

The zygote does this in a clone (:func:`run`), so that the program is in its cgroup before its first instruction, costs
no move between cgroups, is nobody's child to wait for and outlives the worker. Where the zygote is away, the same is
done by an executed Python: ``python -m kuasar.supervisor.program JSON``, with the descriptors 0, 1, 2, 3 … in place.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from dataclasses import dataclass
from typing import Any, NoReturn

from kuasar.core import cgroup
from kuasar.core.errors import InvalidArgument
from kuasar.core.namespaces import join_netns
from kuasar.core.spawn import MINIMAL_ENV
from kuasar.supervisor.clone import set_parent_death_signal

_PR_SET_NO_NEW_PRIVS = 38
_EXIT_CANNOT_EXECUTE = 126
_MAX_FDS = 64


@dataclass(frozen=True)
class Program:
    """What to execute and as whom."""

    argv: list[str]
    cgroup: str
    """Made already; empty: stay in the caller's."""
    uid: int
    gid: int
    groups: list[int]
    """Supplementary groups, of a program that is not root."""
    parent: int
    """The process with which it dies; 0: it outlives whoever starts it."""
    descriptors: int
    """How many descriptors from 0 on it inherits."""
    netns: str
    """Path of the network namespace that it joins; empty: it stays where it is."""
    directory: str
    """Its working directory; empty: the caller's."""

    @classmethod
    def parse(cls, args: dict[str, Any]) -> Program:
        """From the map that crossed the process border. Raises :class:`InvalidArgument` naming the field."""
        wanted = {
            "argv": list,
            "cgroup": str,
            "uid": int,
            "gid": int,
            "groups": list,
            "parent": int,
            "descriptors": int,
            "netns": str,
            "directory": str,
        }
        for name, kind in wanted.items():
            if type(args.get(name)) is not kind:
                raise InvalidArgument(f"{name}: {kind.__name__} is needed, got {args.get(name)!r:.80}", field=name)
        if not args["argv"] or not all(type(word) is str for word in args["argv"]):
            raise InvalidArgument("argv: a list of strings is needed", field="argv")
        if not all(type(group) is int for group in args["groups"]):
            raise InvalidArgument("groups: a list of numbers is needed", field="groups")
        if args["directory"] and not os.path.isabs(args["directory"]):
            raise InvalidArgument(f"directory: {args['directory']!r:.80} is not an absolute path", field="directory")
        if not 3 <= args["descriptors"] <= _MAX_FDS:
            raise InvalidArgument(f"descriptors: 3 to {_MAX_FDS}", field="descriptors")
        return cls(**{name: args[name] for name in wanted})


def run(args: dict[str, Any]) -> NoReturn:
    """Become the program. Called in a process of one thread that is nobody else's; what fails ends it with 126 and a
    line on standard error."""
    try:
        program = Program.parse(args)
        if program.cgroup:
            cgroup.enter_alone(program.cgroup)
        if program.netns:
            join_netns(program.netns)
        if program.directory:
            os.chdir(program.directory)  # as who we are now: the user may not be able to get there
        _become(program)
        if program.parent:
            set_parent_death_signal(program.parent)  # after the change of user, which would drop it
        for fd in range(program.descriptors):
            os.set_inheritable(fd, True)
        os.execvpe(program.argv[0], program.argv, dict(MINIMAL_ENV))  # noqa: S606 - there is no shell, by intent
    except BaseException as exc:
        os.write(2, f"cannot start {(args.get('argv') or ['?'])[0]}: {exc}\n".encode(errors="replace"))
    os._exit(_EXIT_CANNOT_EXECUTE)


def _become(program: Program) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if program.uid:
        os.setgroups(program.groups)
        os.setresgid(program.gid, program.gid, program.gid)
        os.setresuid(program.uid, program.uid, program.uid)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "no_new_privs")


def main() -> NoReturn:
    """The executed form."""
    run(json.loads(sys.argv[1]))


if __name__ == "__main__":
    main()
