"""One Cloud Hypervisor process and its sockets: started, given a machine or a template's state, taken over, ended.

The API's socket is made here and inherited, so it can be connected to at once; the VMM makes that of hybrid vsock, in
the directory of its own that it runs in (``kuasar/backends/jail.py``).
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial

from kuasar.agent.client import AgentClient
from kuasar.backends.base import ROOT, Host, Place, User
from kuasar.backends.boot_setup import Setup
from kuasar.backends.channels import AGENT_PORT, greet, until_listening
from kuasar.backends.cloud_hypervisor import bodies
from kuasar.backends.cloud_hypervisor.api import Api
from kuasar.backends.cloud_hypervisor.events import EventFile
from kuasar.backends.cloud_hypervisor.state import RESTORED, State
from kuasar.backends.hybrid_vsock import open_port
from kuasar.backends.jail import Jail
from kuasar.backends.processes import HeldProcess, open_log
from kuasar.backends.sockets import listen
from kuasar.core.errors import KuasarError

API_SOCKET, VSOCK_SOCKET, EVENTS = "api.sock", "vsock.sock", "events"
_QUIT_SECONDS = 2.0


@dataclass(frozen=True)
class Placement:
    """Where and as whom a machine runs."""

    console_path: str
    """The guest's serial console and what the VMM itself says, its standard output and error."""
    cgroup: str = ""
    user: User = ROOT


class Machine:
    """A Cloud Hypervisor in the directory of ``host``; ``process`` holds it, and it runs as ``user``."""

    def __init__(self, host: Host, process: HeldProcess, user: User) -> None:
        self._host = host
        self._process = process
        self.jail = Jail(host, user)
        self.api = Api(host.loop, host.directory, API_SOCKET)
        self.events = EventFile(host.loop, f"{host.directory}/{EVENTS}")

    async def boot(
        self, setup: Setup, guest: bodies.Guest, placement: Placement, deadline: float, template: int | None = None
    ) -> None:
        """Start the VMM, give it a machine and let that run; the paths of ``guest`` are filled in. ``template``: an
        open directory that it can be saved into. What is left of a failure is undone by ending the process and
        :meth:`disconnect`."""
        self._start(setup, placement, template)
        await self.api.put("vm.create", bodies.create(with_descriptors(guest)), deadline=deadline)
        await self.api.put("vm.boot", deadline=deadline)

    async def restore(
        self, setup: Setup, guest: bodies.Guest, saved: tuple[State, int], placement: Placement, deadline: float
    ) -> None:
        """Start the VMM and have it go on from a template, ``saved``: its state, and its memory as an open file.
        Failure as of :meth:`boot`."""
        state, memory = saved
        self._start(setup, placement, memory)
        source = bodies.path_of(bodies.Descriptors.in_order().template)
        directory = f"{self.jail.directory}/{RESTORED}"
        state.for_clone(with_descriptors(guest)).write(directory, source, placement.user)
        try:
            await self.api.put("vm.restore", bodies.restore(RESTORED), deadline=deadline)
        finally:
            shutil.rmtree(directory)
        await self.api.put("vm.resume", deadline=deadline)

    def _start(self, setup: Setup, placement: Placement, template: int | None) -> None:
        directory, user = self._host.directory, placement.user
        self._host.acquiring("socket", f"{directory}/{API_SOCKET}")
        self.jail.open()
        with suppress(FileNotFoundError):  # of a machine whose start was given up
            os.unlink(f"{self.jail.directory}/{VSOCK_SOCKET}")
        numbers = bodies.Descriptors.in_order()
        with ExitStack() as stack:
            fds = [stack.enter_context(listen(directory, API_SOCKET)).fileno()]
            for path in (setup.kernel, setup.initrd, setup.root):
                fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                stack.callback(os.close, fds[-1])
            events = stack.enter_context(open_log(self.events.path)).fileno()
            os.ftruncate(events, 0)
            fds += [events, fds[-1] if template is None else template]
            console = stack.enter_context(open_log(placement.console_path)).fileno()
            argv = bodies.argv(setup.binary, numbers.api, numbers.events)
            start, place = self._host.start_program, Place(self.jail.directory)
            self._process.take(partial(start, argv, console, fds, placement.cgroup, user, place))

    async def reconnect(self, deadline: float) -> None:
        """Of a machine that another process started: whether its VMM answers."""
        await self.api.get("vmm.ping", deadline)

    async def open_channel(self, deadline: float) -> AgentClient:
        """A new connection to the agent, which has said hello. Waits for a guest that is still booting."""
        loop, directory = self._host.loop, self.jail.directory
        sock = await until_listening(
            loop, lambda limit: open_port(loop, directory, VSOCK_SOCKET, AGENT_PORT, limit), deadline
        )
        return await greet(loop, sock, deadline)

    async def quit(self) -> None:
        """Ask the VMM to end; harmless when it is gone."""
        with suppress(KuasarError):
            await self.api.put("vmm.shutdown", deadline=time.monotonic() + _QUIT_SECONDS)

    def disconnect(self) -> None:
        """Remove the sockets and the directory of a VMM that is dead; harmless to repeat."""
        path = f"{self._host.directory}/{API_SOCKET}"
        for each in (path, self.events.path):
            with suppress(FileNotFoundError):
                os.unlink(each)
        self._host.released("socket", path)
        self.jail.release()


def with_descriptors(guest: bodies.Guest) -> bodies.Guest:
    """The machine with the paths of what its VMM inherits."""
    numbers, path_of = bodies.Descriptors.in_order(), bodies.path_of
    return replace(
        guest,
        kernel=path_of(numbers.kernel),
        initramfs=path_of(numbers.initrd),
        root_disk=path_of(numbers.root),
        vsock=VSOCK_SOCKET,
    )
