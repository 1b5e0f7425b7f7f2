"""One Firecracker process and its sockets: started, given a machine, taken over.

The VMM makes both sockets itself, in its own directory (``jail.py``). There is no request that ends it: it ends when
its guest resets the machine, or is killed.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial

from kuasar.agent.client import AgentClient
from kuasar.backends.base import ROOT, Host, Place, User
from kuasar.backends.boot_setup import Setup
from kuasar.backends.channels import AGENT_PORT, greet, until_listening
from kuasar.backends.firecracker import bodies
from kuasar.backends.firecracker.api import Api
from kuasar.backends.hybrid_vsock import open_port
from kuasar.backends.jail import Jail
from kuasar.backends.processes import HeldProcess, open_log
from kuasar.core.errors import DeadlineExceeded, Unavailable

_POLL_SECONDS = 0.005


@dataclass(frozen=True)
class Placement:
    """Where and as whom a machine runs."""

    log_path: str
    console_path: str
    cgroup: str = ""
    netns: str = ""
    user: User = ROOT


class Machine:
    """A Firecracker in the directory of ``host``; ``process`` holds it."""

    def __init__(self, host: Host, process: HeldProcess, user: User) -> None:
        self._host = host
        self._process = process
        self.jail = Jail(host, user)
        self.api = Api(host.loop, self.jail.directory)

    async def boot(
        self,
        setup: Setup,
        guest: bodies.Guest,
        placement: Placement,
        deadline: float,
        files: tuple[int, ...] = (),
    ) -> None:
        """Start the VMM, give it a machine and let that run; ``files``: state and memory, open, for a snapshot of it.
        What is left of a failure is undone by ending the process and :meth:`disconnect`."""
        self._start(setup, placement, files)
        await self._until_listening(deadline)
        for request in bodies.boot(guest):
            await self.api.do(request, deadline)

    async def restore(
        self, setup: Setup, files: tuple[int, int], taps: tuple[str, ...], placement: Placement, deadline: float
    ) -> None:
        """Start the VMM and have it go on from a snapshot, of which ``files`` are state and memory, open. Failure as
        of :meth:`boot`."""
        self._start(setup, placement, files)
        await self._until_listening(deadline)
        await self.api.do(bodies.restore(taps), deadline)

    def _start(self, setup: Setup, placement: Placement, files: tuple[int, ...]) -> None:
        self.jail.open(bodies.EMPTY)
        for name in (bodies.API_SOCKET, bodies.VSOCK_SOCKET):  # of a machine whose start was given up
            with suppress(FileNotFoundError):
                os.unlink(f"{self.jail.directory}/{name}")
        argv = bodies.argv(setup.binary)
        place = Place(self.jail.directory, placement.netns)
        with ExitStack() as stack:
            fds = []
            for path in (setup.kernel, setup.initrd, setup.root):
                fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                stack.callback(os.close, fds[-1])
            log = stack.enter_context(open_log(placement.log_path))
            # Firecracker opens it anew, as who it is then, and writes from the start.
            os.ftruncate(log.fileno(), 0)
            os.fchown(log.fileno(), placement.user.uid, placement.user.gid)
            console = stack.enter_context(open_log(placement.console_path))
            fds += [log.fileno(), *files]
            host, user = self._host, placement.user
            self._process.take(partial(host.start_program, argv, console.fileno(), fds, placement.cgroup, user, place))

    async def _until_listening(self, deadline: float) -> None:
        """The VMM makes its socket when it has come so far; nothing tells of it. Raises :class:`Unavailable` when it
        ends instead, or :class:`DeadlineExceeded`."""
        while time.monotonic() < deadline:
            try:
                await self.api.get("", deadline)
                return
            except Unavailable as exc:
                if not self._process.alive:
                    raise Unavailable("Firecracker ended before its API could be reached") from exc
            await self._host.loop.sleep(_POLL_SECONDS)
        raise DeadlineExceeded("Firecracker's API socket does not appear")

    async def reconnect(self, deadline: float) -> None:
        """Of a machine that another process started: whether its VMM answers."""
        await self.api.get("", deadline)

    async def open_channel(self, deadline: float) -> AgentClient:
        """A new connection to the agent, which has said hello. Waits for a guest that is still booting."""
        loop, directory = self._host.loop, self.jail.directory
        sock = await until_listening(
            loop, lambda limit: open_port(loop, directory, bodies.VSOCK_SOCKET, AGENT_PORT, limit), deadline
        )
        return await greet(loop, sock, deadline)

    def disconnect(self) -> None:
        """Remove the jail of a VMM that is dead; harmless to repeat."""
        self.jail.release()
