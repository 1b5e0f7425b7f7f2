"""Commands of an operator in the sandbox itself, beside its containers: with the agent's root and namespaces.

On the host these are the programs of the host, seen from within the pod's namespaces; in a guest those of the guest
image. Each command has a cgroup of its own below the sandbox's: what it leaves behind ends with it, and so does all of
it when its time is over or the one who asked for it is gone.

A command is started through a shell that waits until it is in its cgroup and then becomes the command, so that nothing
can be forked outside of it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from kuasar.agent.exchange import Exchange
from kuasar.agent.protocol import COMMAND_OPERATIONS
from kuasar.agent.remote import make_remote_streams
from kuasar.agent.requests import Body
from kuasar.agent.stdio import StdioPaths, Streams, make_streams
from kuasar.core import cgroup, log
from kuasar.core.aio import Future, Loop, Timer
from kuasar.core.descriptors import require_room
from kuasar.core.errors import BackendFailed, KuasarError, NotFound, ResourceExhausted
from kuasar.core.spawn import PATH, Children, Exit
from kuasar.core.threads import in_thread

STREAMS_OF = "@"
"""Where the id of a stream has a container: no container is called that."""
MOST = 16
"""Commands of a sandbox at a time."""
TIMED_OUT, NOT_EXECUTABLE, NOT_FOUND = 124, 126, 127
_SHELL = "/bin/sh"
_GATE = 9
"""The descriptor over which the shell is told to go on."""
_BECOME = (
    f'read -r _ <&{_GATE} || exit 125; exec {_GATE}<&-; [ -z "$1" ] || exec <>"$1" >&0 2>&1; '
    'cd "$2" || exit 126; shift 2; exec "$@"'
)
"""The first terminal that the leader of a session opens becomes its controlling one."""
_KILL_SECONDS = 5.0
_UNWANTED_SECONDS = 20.0
_POLL_SECONDS = 0.002
_DESCRIPTORS = 12

Operation = Callable[[Body, float | None], Awaitable[dict[str, Any]]]


class Command:
    """One command, from its start to its deletion."""

    def __init__(self, loop: Loop, command_id: str, streams: Streams, group: str) -> None:
        self.id = command_id
        self.streams = streams
        self.cgroup = group
        self.pid = 0
        self.dead = False
        self.status = 0
        self.reason = ""
        self.told: Future[None] = Future(loop)
        """It has ended, and its output has been handed over."""
        self.timer: Timer | None = None
        """When its time is over."""
        self.unwanted: Timer | None = None
        """When it ends because no worker has asked for it."""


class Commands:
    """The commands of this agent. ``group``: the cgroup below which each gets its own."""

    def __init__(self, loop: Loop, children: Children, exchange: Exchange, group: str) -> None:
        self._loop = loop
        self._children = children
        self._exchange = exchange
        self._group = group
        self._commands: dict[str, Command] = {}

    def operations(self) -> dict[str, Operation]:
        """By name."""
        return {op: getattr(self, f"_{op.removeprefix('command.')}") for op in COMMAND_OPERATIONS}

    def worker_changed(self) -> None:
        """There is a new worker: what it does not ask for within some seconds has lost its caller, and ends."""
        for command in self._commands.values():
            if command.unwanted is None:
                end = self._end_unwanted
                command.unwanted = self._loop.call_later(_UNWANTED_SECONDS, end, command)

    def _end_unwanted(self, command: Command) -> None:
        log.warning("nobody asks for a command any more, ending it", command=command.id)
        self._loop.spawn(self._remove(command), "end of an unwanted command")

    def _require(self, body: Body) -> Command:
        command_id = body.identifier("command")
        command = self._commands.get(command_id)
        if command is None:
            raise NotFound(f"command {command_id} does not run", command=command_id)
        return command

    # -- start -------------------------------------------------------------------------------------------------------

    async def _start(self, body: Body, deadline: float | None) -> dict[str, Any]:
        command_id = body.identifier("command")
        known = self._commands.get(command_id)
        if known is not None:
            return {"pid": known.pid}  # asked for by a successor of the worker that has started it
        args = [argument for argument in body.items("args") if isinstance(argument, str)]
        if not args or len(args) != len(body.items("args")) or any("\0" in argument for argument in args):
            raise body.error("args", "strings are needed, and one at least")
        if len(self._commands) >= MOST:
            raise ResourceExhausted(f"{MOST} commands run in this sandbox already")
        env = {str(name): str(value) for name, value in body.mapping("env").items()}
        env = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8"} | env
        seconds, cwd = body.seconds("seconds"), body.text("cwd") or "/"
        paths = StdioPaths(body.flag("terminal"), body.text("stdin"), body.text("stdout"), body.text("stderr"))
        command = Command(self._loop, command_id, self._make_streams(paths, command_id), f"{self._group}/{command_id}")
        self._commands[command_id] = command
        try:
            await self._start_steps(command, args, env, cwd, (body.number("width"), body.number("height")))
        except BaseException:
            await self._remove(command)
            raise
        if seconds:
            command.timer = self._loop.call_later(seconds, self._time_is_over, command, seconds)
        return {"pid": command.pid}

    def _make_streams(self, paths: StdioPaths, command_id: str) -> Streams:
        require_room(_DESCRIPTORS, f"command {command_id}")
        if paths.remote:
            return make_remote_streams(self._exchange, paths, f"{STREAMS_OF}/{command_id}")
        return make_streams(self._loop, paths, is_init=False)

    async def _start_steps(
        self, command: Command, args: list[str], env: Mapping[str, str], cwd: str, size: tuple[int, int]
    ) -> None:
        terminal = command.streams.paths.terminal
        cgroup.create(command.cgroup)
        stdio = command.streams.open()
        console, slave = os.openpty() if terminal else (None, None)
        gate, opener = os.pipe2(os.O_CLOEXEC)
        try:
            program, status, reason = find_program(args[0], env.get("PATH", ""), cwd)
            if status:
                command.streams.started(console)  # which is theirs now, and closed with them
                console = None
                self._failed(command, status, reason)
                return
            tty = os.ttyname(slave) if slave is not None else ""
            argv = [_SHELL, "-c", _BECOME, "sh", tty, cwd, program, *args[1:]]
            command.pid, ended = self._children.spawn(
                argv,
                stdin=stdio.stdin if slave is None else slave,
                stdout=stdio.stdout if slave is None else slave,
                stderr=stdio.stderr if slave is None else slave,
                env=env,
                pass_fds={_GATE: gate},
                new_session=terminal,
            )
            command.streams.started(console)
            console = None
            if terminal and all(size):
                command.streams.resize(*size)
            self._loop.spawn(self._see_to_the_end(command, ended), f"end of command {command.id}")
            await in_thread(self._loop, lambda: cgroup.enter(command.cgroup, command.pid))
            os.write(opener, b"\n")
        finally:
            for fd in (console, slave, gate, opener):
                if fd is not None:
                    os.close(fd)

    def _failed(self, command: Command, status: int, reason: str) -> None:
        """It never ran: as a shell says it."""
        command.dead, command.status, command.reason = True, status, reason
        self._loop.spawn(self._tell(command), f"end of command {command.id}")

    # -- the end -----------------------------------------------------------------------------------------------------

    def _time_is_over(self, command: Command, seconds: float) -> None:
        if not command.dead:
            command.reason = f"timed out: it had not ended after {seconds:g} s"
            log.info("a command's time is over", command=command.id, seconds=seconds)
            self._kill_all(command)

    def _kill_all(self, command: Command) -> None:
        """Everything of it: the cgroup, and the process itself, which may not be in there yet."""
        cgroup.kill(command.cgroup)
        if command.pid and not command.dead:
            with suppress(ProcessLookupError):
                os.kill(command.pid, signal.SIGKILL)

    async def _see_to_the_end(self, command: Command, ended: Future[Exit]) -> None:
        end = await ended
        command.dead = True
        command.status = TIMED_OUT if command.reason else end.shell_code
        await self._tell(command)

    async def _tell(self, command: Command) -> None:
        await self._end_others(command)
        await command.streams.drain(None)  # nobody is left who could write: this waits for the reader only
        command.streams.release_process()
        command.told.set_result(None)

    async def _end_others(self, command: Command) -> None:
        deadline = time.monotonic() + _KILL_SECONDS
        while cgroup.kill(command.cgroup):
            if time.monotonic() > deadline:
                log.error("processes of an ended command do not die", command=command.id)
                return
            await self._loop.sleep(_POLL_SECONDS)

    async def _remove(self, command: Command) -> None:
        """End it and forget it; harmless to repeat."""
        if self._commands.get(command.id) is not command:
            return
        for timer in (command.timer, command.unwanted):
            if timer is not None:
                timer.cancel()
        if command.pid:
            command.reason = command.reason or "it was ended"
            self._kill_all(command)
        command.streams.close()
        try:
            await cgroup.destroy(self._loop, command.cgroup)
        except KuasarError as exc:  # it goes with the sandbox's
            log.error("the cgroup of a command stays", command=command.id, error=exc)
        self._commands.pop(command.id, None)

    # -- operations --------------------------------------------------------------------------------------------------

    async def _wait(self, body: Body, deadline: float | None) -> dict[str, Any]:
        command = self._require(body)
        if command.unwanted is not None:
            command.unwanted.cancel()
            command.unwanted = None
        await self._loop.wait_for(command.told, deadline, f"the end of command {command.id}")
        return {"exit_status": command.status, "reason": command.reason}

    async def _kill(self, body: Body, deadline: float | None) -> dict[str, Any]:
        command, number = self._require(body), body.number("signal")
        if not 1 <= number < signal.NSIG:
            raise body.error("signal", f"{number} is no signal")
        if number == signal.SIGKILL:
            self._kill_all(command)
        elif command.pid and not command.dead:
            # Like a key in a terminal: for the command and what it has started. We reap it: the number is still its.
            with suppress(ProcessLookupError):
                os.killpg(command.pid, number)
        return {}

    async def _resize(self, body: Body, deadline: float | None) -> dict[str, Any]:
        command = self._require(body)
        if not command.dead:
            command.streams.resize(body.number("width"), body.number("height"))
        return {}

    async def _close_io(self, body: Body, deadline: float | None) -> dict[str, Any]:
        self._require(body).streams.close_stdin()
        return {}

    async def _delete(self, body: Body, deadline: float | None) -> dict[str, Any]:
        command = self._commands.get(body.identifier("command"))
        if command is not None:
            await self._remove(command)
        return {}


def find_program(name: str, path: str, cwd: str) -> tuple[str, int, str]:
    """The program that ``name`` means, and otherwise the exit status of a shell that cannot find or execute it, and
    why."""
    if not name:
        candidates = []
    elif "/" in name:
        candidates = [os.path.join(cwd, name)]
    else:
        candidates = [os.path.join(cwd, directory or ".", name) for directory in path.split(":")]
    found = [candidate for candidate in candidates if os.path.exists(candidate)]
    for candidate in found:
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            if not os.access(_SHELL, os.X_OK):
                raise BackendFailed(f"there is no {_SHELL} in the sandbox, by which commands are started")
            return candidate, 0, ""
    if found:
        return "", NOT_EXECUTABLE, f"{name}: {found[0]} is no executable file"
    where = "" if "/" in name else f" in {path}"
    return "", NOT_FOUND, f"{name}: not found{where}"
