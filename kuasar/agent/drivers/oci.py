"""Containers by an OCI runtime: runc, crun, and whatever speaks their command line.

The runtime is started for ``create``, ``start``, ``exec`` and ``update`` only; what it would be asked besides (state,
kill, pause, delete) is done here, because a process start costs more than the thing itself. Its state lives in a root
of its own below the sandbox directory, so nothing outlives the sandbox. The driver remembers of each container where
it is and which cgroup it has, from ``create`` until ``delete``.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from kuasar.agent.drivers.base import EXEC, PAUSE, TTY, UPDATE, ContainerSetup, ProcessStdio, Started
from kuasar.agent.files import remove_tree
from kuasar.core import cgroup, log
from kuasar.core.aio import Loop, Task
from kuasar.core.errors import BackendFailed, KuasarError, NotFound, wrap
from kuasar.core.spawn import Children, Exit
from kuasar.core.threads import in_thread

_NO_STREAMS = ProcessStdio(terminal=False, stdin=None, stdout=None, stderr=None)
_MAX_LOG = 64 * 1024


@dataclass(frozen=True)
class _Container:
    directory: str
    cgroup: str
    has_poststop_hooks: bool


class OciDriver:
    """The verbs of ``base.Driver``, by the program ``binary``, whose state is kept in ``root``."""

    name = "oci"
    capabilities = frozenset({EXEC, PAUSE, UPDATE, TTY})
    refusals: Mapping[str, str] = {}

    def __init__(self, loop: Loop, children: Children, root: str, binary: str) -> None:
        self._loop = loop
        self._children = children
        self._root = root
        self._binary = binary
        self._containers: dict[str, _Container] = {}
        self._runs = itertools.count(1)
        self._preparing: Task[None] | None = None

    def anticipate(self) -> None:
        """Let the kernel's grace period pass while the runtime comes up, which will move a process between cgroups.

        Saves 5 to 15 ms of every create and exec. A thread is harmless here: this driver never forks.
        """
        if self._preparing is None or self._preparing.done:
            self._preparing = self._loop.spawn(in_thread(self._loop, cgroup.prepare), "prepare a move")

    async def create(self, setup: ContainerSetup, stdio: ProcessStdio, deadline: float | None) -> Started:
        """See ``base.Driver``."""
        linux = setup.spec.get("linux") or {}
        hooks = setup.spec.get("hooks") or {}
        container = _Container(setup.directory, linux.get("cgroupsPath") or "", bool(hooks.get("poststop")))
        _write_json(f"{setup.directory}/config.json", setup.spec)
        self._containers[setup.id] = container
        try:
            return await self._launch("create", setup.id, container, "init", stdio, deadline, ["--bundle"], setup)
        except BaseException:
            await self._undo_create(setup.id)
            raise

    async def _undo_create(self, container_id: str) -> None:
        try:
            await self.delete(container_id, None)
        except KuasarError as exc:  # the first error is the one that matters; the cgroup has an owner who will retry
            log.error("a container that could not be made cannot be removed", container=container_id, error=exc)

    async def start(self, container_id: str, deadline: float | None) -> None:
        """See ``base.Driver``."""
        container = self._require(container_id)
        await self._runtime(["start"], [container_id], container, _NO_STREAMS, deadline)

    async def exec(
        self, container_id: str, exec_id: str, process: dict[str, Any], stdio: ProcessStdio, deadline: float | None
    ) -> Started:
        """See ``base.Driver``."""
        container = self._require(container_id)
        file = f"{container.directory}/exec-{exec_id}.json"
        _write_json(file, process)
        try:
            return await self._launch(
                "exec", container_id, container, f"exec-{exec_id}", stdio, deadline, ["--detach", "--process", file]
            )
        finally:
            with suppress(FileNotFoundError):
                os.unlink(file)

    async def delete(self, container_id: str, deadline: float | None) -> None:
        """See ``base.Driver``. Kills what is left of the container first."""
        container = self._containers.get(container_id)
        if container is None:
            return
        if container.has_poststop_hooks:
            await self._runtime(["delete"], ["--force", container_id], container, _NO_STREAMS, deadline)
        if container.cgroup:
            await cgroup.destroy(self._loop, container.cgroup, deadline)
        # All that is left of it is the runtime's record: a directory of its id.
        remove_tree(f"{self._root}/{container_id}")
        del self._containers[container_id]

    async def pause(self, container_id: str, deadline: float | None) -> None:
        """See ``base.Driver``. The runtime would freeze the same cgroup, and reads its own state from there."""
        await cgroup.freeze(self._loop, self._require(container_id).cgroup, deadline)

    async def resume(self, container_id: str, deadline: float | None) -> None:
        """See ``base.Driver``."""
        cgroup.thaw(self._require(container_id).cgroup)

    async def update(self, container_id: str, resources: dict[str, Any], deadline: float | None) -> None:
        """See ``base.Driver``."""
        container = self._require(container_id)
        file = f"{container.directory}/resources.json"
        _write_json(file, resources)
        await self._runtime(["update"], ["--resources", file, container_id], container, _NO_STREAMS, deadline)

    def _require(self, container_id: str) -> _Container:
        container = self._containers.get(container_id)
        if container is None:
            raise NotFound(f"the runtime has no container {container_id}")
        return container

    async def _launch(
        self,
        verb: str,
        container_id: str,
        container: _Container,
        name: str,
        stdio: ProcessStdio,
        deadline: float | None,
        options: Sequence[str],
        setup: ContainerSetup | None = None,
    ) -> Started:
        """Run a verb that makes a process; give its pid and, with a terminal, the master."""
        arguments = [*options, setup.directory] if setup is not None else list(options)
        pid_file = f"{container.directory}/{name}.pid"
        arguments += ["--pid-file", pid_file]
        self.anticipate()
        try:
            if not stdio.terminal:
                await self._runtime([verb], [*arguments, container_id], container, stdio, deadline)
                return Started(_read_pid(pid_file))
            with _console_socket(container.directory) as (listener, path):
                if setup is None:
                    arguments.append("--tty")
                arguments += ["--console-socket", path, container_id]
                await self._runtime([verb], arguments, container, _NO_STREAMS, deadline)
                return Started(_read_pid(pid_file), _receive_master(listener))
        finally:
            with suppress(FileNotFoundError):
                os.unlink(pid_file)

    async def _runtime(
        self,
        verb: list[str],
        arguments: list[str],
        container: _Container,
        stdio: ProcessStdio,
        deadline: float | None,
    ) -> None:
        """Run the program to its end. Raises :class:`BackendFailed` with its own last words."""
        log_file = f"{container.directory}/runtime-{next(self._runs)}.log"
        argv = [self._binary, "--root", self._root, "--log", log_file, "--log-format", "json", *verb, *arguments]
        pid, ended = self._children.spawn(argv, stdin=stdio.stdin, stdout=stdio.stdout, stderr=stdio.stderr)
        what = f"{os.path.basename(self._binary)} {verb[0]}"
        try:
            end = await self._loop.wait_for(ended, deadline, what)
        except BaseException:
            if not ended.done:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)  # not reaped yet, so the group is still this child's
            raise
        finally:
            words = last_error(log_file)
            with suppress(FileNotFoundError):
                os.unlink(log_file)
        if end != Exit(0):
            raise BackendFailed(words if words.startswith(what) else f"{what}: {words or end.words}")


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


def _read_pid(path: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError) as exc:
        raise BackendFailed(f"the runtime wrote no pid to {path}: {exc}") from exc


def _write_json(path: str, value: Any) -> None:
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
