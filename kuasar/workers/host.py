"""What the worker lends to its backend: the record, the sandbox's cgroup, and the way to start an agent."""

from __future__ import annotations

import json
import shlex
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kuasar.backends.base import HERE, ROOT, AgentProcess, Place, User
from kuasar.core import log
from kuasar.core.aio import Loop
from kuasar.core.config import Config
from kuasar.core.errors import BackendFailed, Unavailable
from kuasar.core.spawn import Children, Completed
from kuasar.supervisor import zygote_client
from kuasar.supervisor.keeper_client import Keeper

if TYPE_CHECKING:
    from kuasar.workers.sandbox import Sandbox

_FORK_SECONDS = 2.0
_EXEC_SECONDS = 10.0
_PID = struct.Struct("i")


class WorkerHost:
    """The :class:`kuasar.backends.base.Host` of a worker. Lives as long as its sandbox object."""

    def __init__(self, loop: Loop, children: Children, config: Config, sandbox: Sandbox) -> None:
        self.loop = loop
        self.directory = sandbox.directory.path
        self.state_dir = config.state_dir
        self.log_dir = config.log_dir
        self.config_path = config.path
        self._children = children
        self._config = config
        self._sandbox = sandbox

    @property
    def machine(self) -> Mapping[str, Any]:
        return self._sandbox.record.machine

    def remember(self, **facts: Any) -> None:
        self._sandbox.record.machine.update(facts)
        self._sandbox.directory.save()

    def acquiring(self, kind: str, name: str) -> None:
        self._sandbox.directory.acquiring(kind, name)

    def released(self, kind: str, name: str) -> None:
        self._sandbox.directory.released(kind, name)

    @property
    def engine(self) -> str:
        return self._sandbox.record.engine

    async def run(self, argv: Sequence[str], deadline: float | None) -> Completed:
        return await self._children.run(argv, deadline=deadline)

    def keep(self, name: str, make: Callable[[], int]) -> int:
        keeper = Keeper(self._config.supervisor.keeper)
        try:
            kept = keeper.get(name)
            if kept is not None:
                return kept[0][0]
            made = make()
            keeper.put(name, [made])
        except Unavailable as exc:
            log.warning("the keeper is away, nothing is shared with other sandboxes", name=name, error=exc)
            return make()
        finally:
            keeper.close()
        return made

    def holdings(self) -> Sequence[tuple[str, str]]:
        return tuple(self._sandbox.record.holdings)

    def lap(self, phase: str) -> None:
        self._sandbox.phases.lap(phase)

    def start_agent(self, args: dict[str, Any], listen_fd: int, log_fd: int, flags: int) -> AgentProcess:
        title = f"kuasar-agent {self._sandbox.id}"
        args = {
            **args,
            "log_level": log.level(),
            "log_format": self._config.log_format,
            "failpoints": self._config.failpoints_dir,
        }
        request = {"kind": "agent", "title": title, "args": args, "flags": flags}
        self._sandbox.record.machine["path"] = "fork"  # saved with the pid, before it runs
        try:
            return zygote_client.fork(self._config.supervisor.zygote, request, [listen_fd, log_fd], _FORK_SECONDS)
        except Unavailable as exc:
            log.warning("the zygote is away, the agent is executed instead", error=exc)
            self._sandbox.record.machine["path"] = "exec"
            return self._exec_agent(args, listen_fd, log_fd, flags)

    def start_program(
        self,
        argv: Sequence[str],
        log_fd: int,
        fds: Sequence[int] = (),
        cgroup: str = "",
        user: User = ROOT,
        place: Place = HERE,
    ) -> AgentProcess:
        args = {
            "argv": list(argv),
            "cgroup": cgroup,
            "uid": user.uid,
            "gid": user.gid,
            "groups": list(user.groups),
            "parent": 0,
            "descriptors": 3 + len(fds),
            "netns": place.netns,
            "directory": place.directory,
        }
        log.info("starting", argv=shlex.join(argv))
        request = {"kind": "program", "title": f"kuasar-program {self._sandbox.id}", "args": args}
        try:
            return zygote_client.fork(self._config.supervisor.zygote, request, [log_fd, *fds], _FORK_SECONDS)
        except Unavailable as exc:
            log.warning("the zygote is away, the program is started the slow way", error=exc)
        launcher = [sys.executable, "-m", "kuasar.supervisor.program", json.dumps(args)]
        numbered = {3 + index: fd for index, fd in enumerate(fds)}
        pid, _ = self._children.spawn(launcher, stdout=log_fd, stderr=log_fd, pass_fds=numbered, new_session=True)
        return SpawnedProgram(pid)

    def _exec_agent(self, args: dict[str, Any], listen_fd: int, log_fd: int, flags: int) -> AgentProcess:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [sys.executable, "-m", "kuasar.agent.launch", "--args", json.dumps(args), "--flags", str(flags)]
            argv += ["--listen-fd", "3", "--control-fd", "4"]
            self._children.spawn(
                argv, stdout=log_fd, stderr=log_fd, pass_fds={3: listen_fd, 4: theirs.fileno()}, new_session=True
            )
        return ExecutedAgent(ours)


class SpawnedProgram:
    """A program started without the zygote: it runs already."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def commit(self) -> None:
        """Nothing to wait for."""

    def abort(self) -> None:
        """The owner ends it by its pidfd."""


class ExecutedAgent:
    """An agent started by ``kuasar.agent.launch``; waits for the go byte as a clone of the zygote does."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        control.settimeout(_EXEC_SECONDS)
        try:
            answer = control.recv(4096)
        except TimeoutError:
            control.close()
            raise BackendFailed(f"the agent's launcher did not answer within {_EXEC_SECONDS:g} s") from None
        if len(answer) != _PID.size:
            control.close()
            raise BackendFailed(f"the agent could not be started: {answer.decode(errors='replace') or 'see its log'}")
        self.pid: int = _PID.unpack(answer)[0]

    def commit(self) -> None:
        """Let it run."""
        with self._control:
            self._control.send(b"g")

    def abort(self) -> None:
        """Make it exit instead; harmless after :meth:`commit`."""
        self._control.close()
