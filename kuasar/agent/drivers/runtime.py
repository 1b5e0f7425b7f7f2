"""Running an OCI runtime's program: its verbs, its log, its pid files, its console socket. Common to its drivers."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from kuasar.agent.drivers.base import ProcessStdio, Started
from kuasar.core.aio import Loop
from kuasar.core.errors import BackendFailed, wrap
from kuasar.core.spawn import Children, Exit

NO_STREAMS = ProcessStdio(terminal=False, stdin=None, stdout=None, stderr=None)
_MAX_LOG = 64 * 1024


class Runtime:
    """The program ``binary``, whose state is kept in ``root``; ``flags`` stand before every verb."""

    def __init__(self, loop: Loop, children: Children, binary: str, root: str, flags: Sequence[str] = ()) -> None:
        self._loop = loop
        self._children = children
        self._runs = itertools.count(1)
        self.binary = binary
        self.root = root
        self.flags = flags

    async def create(
        self, container_id: str, directory: str, stdio: ProcessStdio, deadline: float | None, bundle: str = ""
    ) -> Started:
        """Make the container whose ``config.json`` is in ``bundle`` (usually its own ``directory``)."""
        return await self._launch(
            "create", container_id, directory, "init", stdio, deadline, ["--bundle", bundle or directory], []
        )

    async def exec(
        self,
        container_id: str,
        directory: str,
        exec_id: str,
        process: dict[str, Any],
        stdio: ProcessStdio,
        deadline: float | None,
        options: Sequence[str] = (),
        *,
        terminal_options: Sequence[str] = (),
    ) -> Started:
        """Start an OCI ``process``; ``terminal_options`` are added for one with a terminal."""
        file = f"{directory}/exec-{exec_id}.json"
        write_json(file, process)
        try:
            return await self._launch(
                "exec",
                container_id,
                directory,
                f"exec-{exec_id}",
                stdio,
                deadline,
                ["--detach", "--process", file, *options],
                terminal_options,
            )
        finally:
            with suppress(FileNotFoundError):
                os.unlink(file)

    async def _launch(
        self,
        verb: str,
        container_id: str,
        directory: str,
        name: str,
        stdio: ProcessStdio,
        deadline: float | None,
        options: Sequence[str],
        terminal_options: Sequence[str],
    ) -> Started:
        """Run a verb that makes a process; give its pid and, with a terminal, the master."""
        pid_file = f"{directory}/{name}.pid"
        arguments = [*options, "--pid-file", pid_file]
        try:
            if not stdio.terminal:
                await self.run(verb, [*arguments, container_id], directory, stdio, deadline)
                return Started(read_pid(pid_file))
            with _console_socket(directory) as (listener, path):
                arguments += [*terminal_options, "--console-socket", path, container_id]
                await self.run(verb, arguments, directory, NO_STREAMS, deadline)
                return Started(read_pid(pid_file), _receive_master(listener))
        finally:
            with suppress(FileNotFoundError):
                os.unlink(pid_file)

    async def run(
        self, verb: str, arguments: Sequence[str], directory: str, stdio: ProcessStdio, deadline: float | None
    ) -> None:
        """Run a verb to its end. Raises :class:`BackendFailed` with the program's own last words."""
        log_file = f"{directory}/runtime-{next(self._runs)}.log"
        argv = [*self.command(log_file), verb, *arguments]
        pid, ended = self._children.spawn(argv, stdin=stdio.stdin, stdout=stdio.stdout, stderr=stdio.stderr)
        what = f"{os.path.basename(self.binary)} {verb}"
        try:
            end = await self._loop.wait_for(ended, deadline, what)
        except BaseException:
            if not ended.done:
                _kill_with_descendants(pid)  # not reaped yet, so the number is still this child's
            raise
        finally:
            words = last_error(log_file)
            with suppress(FileNotFoundError):
                os.unlink(log_file)
        if end != Exit(0):
            raise BackendFailed(words if words.startswith(what) else f"{what}: {words or end.words}")

    def command(self, log_file: str) -> list[str]:
        """The words before a verb."""
        return [self.binary, "--root", self.root, "--log", log_file, "--log-format", "json", *self.flags]


def _kill_with_descendants(pid: int) -> None:
    """SIGKILL to the program and to what it was making: that has left its process group, and does not always end by
    itself (crun's half-made processes spin for ever)."""
    family = [pid]
    for member in family:  # grows while it is walked
        with suppress(FileNotFoundError, ProcessLookupError):
            for task in os.listdir(f"/proc/{member}/task"):
                with open(f"/proc/{member}/task/{task}/children", encoding="ascii") as file:
                    family += map(int, file.read().split())
    for member in family:
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)


@contextmanager
def _console_socket(directory: str) -> Iterator[tuple[socket.socket, str]]:
    """A listening socket and a path to it that is short enough for ``sun_path`` whatever the directory."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    path = f"/proc/{os.getpid()}/fd/{fd}/console.sock"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
            listener.bind(path)
            listener.listen(1)
            yield listener, path
    except OSError as exc:
        raise wrap(exc, "cannot make the console socket") from exc
    finally:
        with suppress(FileNotFoundError):
            os.unlink("console.sock", dir_fd=fd)
        os.close(fd)


def _receive_master(listener: socket.socket) -> int:
    """The terminal's master. The runtime has sent it before it ended, so nothing here waits."""
    try:
        connection, _ = listener.accept()
        with connection:
            connection.setblocking(False)
            _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
    except BlockingIOError as exc:
        raise BackendFailed("the runtime did not send the terminal") from exc
    if not fds:
        raise BackendFailed("the runtime sent no terminal")
    os.set_inheritable(fds[0], False)
    return fds[0]


def read_pid(path: str) -> int:
    """The number in a pid file."""
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError) as exc:
        raise BackendFailed(f"the runtime wrote no pid to {path}: {exc}") from exc


def write_json(path: str, value: Any) -> None:
    """Write ``value`` for the runtime to read."""
    try:
        data = json.dumps(value, separators=(",", ":")).encode()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb", buffering=0) as file:
            file.write(data)
    except OSError as exc:
        raise wrap(exc, f"cannot write {path}") from exc


def last_error(path: str) -> str:
    """The last error in a runtime's JSON log; the last line as it is where it is no JSON; empty if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _MAX_LOG))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal", "panic"):
            return str(entry.get("msg", ""))
    return lines[-1] if lines else ""
