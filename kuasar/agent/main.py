"""The agent: PID 1 of a pod's namespaces on the host, later of a guest; the parent of its containers.

:func:`run` is called in a process that is in new mount, uts and mostly pid and ipc namespaces already (a clone of the
zygote, or ``agent/launch.py``). Everything it mounts and every process it starts goes with it when it dies, in whatever
way. It survives the worker, the zygote and supervisord.
"""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import kuasar.agent.drivers.oci  # noqa: F401 - the usual driver, warm in the zygote so that no pod waits for its import
from kuasar.agent import kernel, network
from kuasar.agent import setup as pod_setup
from kuasar.agent.containers import Containers
from kuasar.agent.drivers.base import SYSCTLS, Context
from kuasar.agent.drivers.registry import make_driver
from kuasar.agent.events import EventLog
from kuasar.agent.exchange import Exchange
from kuasar.agent.machine import Machine
from kuasar.agent.pids import Pids
from kuasar.agent.protocol import COMMAND_OPERATIONS, COMMANDS, TRACE, VERSION, Hello
from kuasar.agent.requests import Body
from kuasar.agent.server import Server
from kuasar.agent.storage import HostStorage, Storage
from kuasar.agent.tasks import Operation, Tasks
from kuasar.core import aio, cgroup, failpoints, log
from kuasar.core.aio import Future, Loop
from kuasar.core.errors import wrap
from kuasar.core.namespaces import join_netns
from kuasar.core.spawn import Children

if TYPE_CHECKING:
    from kuasar.agent.commands import Commands

_USUAL_SYSCTLS = frozenset({"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range"})
"""Which every pod with a network of its own gets without having asked."""
_COMMANDS_CGROUP = "/kuasar/commands"
"""Of a machine of its own."""
_EXIT_FAILED = 70  # EX_SOFTWARE


@dataclass(frozen=True)
class Arguments:
    """What a sandbox's agent is started with."""

    sandbox_id: str
    directory: str
    """The sandbox directory; the agent makes ``containers``, ``shm`` and what its driver needs in it."""
    cgroup: str
    """The sandbox's cgroup, made by the worker; empty: stay where it is."""
    netns: str
    """Network namespace to join; empty: the one it is in."""
    host_namespaces: frozenset[str]
    """Kinds of namespaces (``net``, ``ipc``) that the pod shares with the host. Told, because the host's first process
    may be one whose namespaces only a more capable process may look at."""
    pid_namespace: bool
    """Whether it is the first process of a pid namespace."""
    driver: str
    options: dict[str, Any]
    log_level: str
    log_format: str
    failpoints: str
    """Where they are armed (``core/failpoints.py``); empty: nowhere."""

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Arguments:
        """From the map that crossed the process border. Raises :class:`InvalidArgument` naming the field."""
        body = Body(values)
        return cls(
            sandbox_id=body.identifier("sandbox_id"),
            directory=body.text("directory"),
            cgroup=body.text("cgroup"),
            netns=body.text("netns"),
            host_namespaces=frozenset(map(str, body.items("host_namespaces"))),
            pid_namespace=body.flag("pid_namespace"),
            driver=body.text("driver"),
            options=body.mapping("options"),
            log_level=body.text("log_level") or "info",
            log_format=body.text("log_format") or "logfmt",
            failpoints=body.text("failpoints"),
        )


def run(args: dict[str, Any], listen_fd: int, machine: Machine | None = None) -> int:
    """Serve on the listening socket ``listen_fd`` until told to shut down; the exit code of the process.

    ``machine`` is given by the first process of a virtual machine: there are the operations ``guest.*`` then, and
    storage is the machine's.
    """
    try:
        arguments = Arguments.parse(args)
        log.configure(arguments.log_level, form=arguments.log_format, sandbox=arguments.sandbox_id, process="agent")
        log.set_about(aio.get_about)
        failpoints.configure(arguments.failpoints)
        host_proc = _enter(arguments)
        return _serve(arguments, listen_fd, host_proc, machine)
    except Exception as exc:
        log.error("the agent cannot go on", error=wrap(exc, "starting the agent"))
        return _EXIT_FAILED


def _enter(arguments: Arguments) -> int:
    """Finish the process's surroundings; gives a directory descriptor of the host's procfs."""
    if arguments.cgroup:
        cgroup.enter_alone(arguments.cgroup)
    if arguments.netns:
        join_netns(arguments.netns)
    # Mounts of the host still arrive (volumes mounted later), ours never leave.
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_SLAVE)
    host_proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if arguments.pid_namespace:
        kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    else:
        kernel.become_subreaper()
    os.umask(0o022)
    # The first process of a pid namespace gets only signals it has handlers for, any other must not end by accident:
    # what ends an agent is ``shutdown``, or SIGKILL.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return host_proc


def _serve(arguments: Arguments, listen_fd: int, host_proc: int, machine: Machine | None) -> int:
    loop = Loop()
    loop.on_error = lambda what, exc: log.error("unhandled error", what=what, error=f"{type(exc).__name__}: {exc}")
    listener = socket.socket(fileno=listen_fd)
    listener.set_inheritable(False)
    agent = Agent(arguments, loop, listener, Pids(host_proc), machine)
    log.info("serving", driver=arguments.driver, pid=os.getpid(), host_pid=agent.pids.agent_on_host)
    loop.run(agent.wait())
    log.info("the end")
    return 0


def _make_commands(loop: Loop, children: Children, exchange: Exchange, group: str) -> Commands:
    from kuasar.agent.commands import Commands  # few sandboxes ever get one, and a guest's PID 1 is small

    return Commands(loop, children, exchange, group)


class Agent:
    """Puts the parts together and has the operations that are about the sandbox as a whole."""

    def __init__(
        self,
        arguments: Arguments,
        loop: Loop,
        listener: socket.socket,
        pids: Pids,
        machine: Machine | None,
    ) -> None:
        self._arguments = arguments
        self._loop = loop
        self.pids = pids
        children = Children(loop)
        context = Context(
            loop,
            children,
            arguments.directory,
            arguments.cgroup,
            arguments.sandbox_id,
            "net" in arguments.host_namespaces,
            self._lost,
        )
        driver = make_driver(arguments.driver, context, arguments.options)
        self._events = EventLog()
        self._capabilities = {*driver.capabilities, TRACE, COMMANDS}
        operations: dict[str, Operation] = {}
        storage: Storage = HostStorage()
        if machine is not None:
            from kuasar.agent.guest.operations import CAPABILITY, Guest  # costs the host's agents nothing

            guest = Guest(loop, self._events, machine, arguments.directory)
            self._capabilities.add(CAPABILITY)
            operations |= guest.operations()
            storage = guest.storage
        exchange = Exchange(loop)
        self.containers = Containers(
            loop, children, driver, pids, self._events, storage, exchange, arguments.directory, arguments.sandbox_id
        )
        self._shut_down: Future[None] = Future(loop)
        self._make_commands = partial(_make_commands, loop, children, exchange, arguments.cgroup or _COMMANDS_CGROUP)
        self._commands: Commands | None = None
        operations |= Tasks(self.containers, pids).operations()
        operations |= {op: partial(self._command, op) for op in COMMAND_OPERATIONS}
        operations |= {
            "setup": self._setup,
            "shutdown": self._shutdown,
            "info": self._info,
            "network": self._network,
            "log_level": self._log_level,
        }
        self._server = Server(loop, listener, self._make_hello, self._events, exchange, operations)
        self._server.on_worker = self._worker_changed

    async def wait(self) -> None:
        """Until the agent has been shut down and has said so."""
        await self._shut_down
        await self._server.finish()

    def _make_hello(self) -> Hello:
        driver = self.containers.driver
        return Hello(
            VERSION,
            self._events.instance,
            self.pids.agent_on_host,
            driver.name,
            sorted(self._capabilities),
            self.containers.ids,
        )

    async def _setup(self, body: Body, deadline: float | None) -> dict[str, Any]:
        pod_setup.set_hostname(body.text("hostname"))
        sysctls = body.mapping("sysctls")
        if sysctls.keys() - _USUAL_SYSCTLS:
            self.containers.require(SYSCTLS)
        pod_setup.set_sysctls(sysctls, self._arguments.host_namespaces.__contains__)
        size = body.number("shm_bytes")
        if size:
            pod_setup.mount_shm(f"{self._arguments.directory}/shm", size)
        return {}

    async def _network(self, body: Body, deadline: float | None) -> dict[str, Any]:
        return await network.configure(self._loop, body, deadline)

    async def _shutdown(self, body: Body, deadline: float | None) -> dict[str, Any]:
        await self.containers.stop_all(body.seconds("grace"))
        self._loop.call_soon(self._end)
        return {}

    def _lost(self, reason: str) -> None:
        log.error("the sandbox is lost", reason=reason)
        self._loop.spawn(self._end_lost(), "the end of a lost sandbox")

    async def _end_lost(self) -> None:
        """Tell the ends of the containers, then end: that is how the worker hears that the sandbox is over."""
        await self.containers.all_told()
        self._end()

    def _end(self) -> None:
        if not self._shut_down.done:
            self._shut_down.set_result(None)

    async def _command(self, op: str, body: Body, deadline: float | None) -> dict[str, Any]:
        if self._commands is None:
            self._commands = self._make_commands()
        return await self._commands.operations()[op](body, deadline)

    def _worker_changed(self) -> None:
        if self._commands is not None:
            self._commands.worker_changed()

    async def _log_level(self, body: Body, deadline: float | None) -> dict[str, Any]:
        level = body.text("level")
        if level and level not in log.LEVELS:
            raise body.error("level", f"{level!r:.80} is none of {', '.join(log.LEVELS)}")
        if level:
            log.set_level(level)
            log.info("log level", level=level)
        return {"level": log.level()}

    async def _info(self, body: Body, deadline: float | None) -> dict[str, Any]:
        return {"containers": self.containers.ids, "load": list(os.getloadavg()), "memory": _memory()}


def _memory() -> dict[str, int]:
    """Bytes of memory in the machine (in a guest: of the sandbox)."""
    wanted = {"MemTotal": "total", "MemAvailable": "available", "MemFree": "free"}
    found = {}
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name in wanted:
                found[wanted[name]] = int(value.split()[0]) * 1024
    return found
