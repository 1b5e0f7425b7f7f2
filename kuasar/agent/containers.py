"""The containers of this agent: made, started, ended and removed here, by a driver.

The states are in ``states.py``. Each container has a lock for the verbs that change it (create, start, pause, resume,
update, delete); kill, wait and reads need none. Every step of a creation is undone when a later one fails; a deletion
that fails can be repeated and goes on where it stopped.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from kuasar.agent import mounts
from kuasar.agent.drivers.base import Anticipating, ContainerSetup, Driver, Measuring, Started
from kuasar.agent.events import EventLog
from kuasar.agent.exchange import Exchange
from kuasar.agent.files import remove_tree
from kuasar.agent.pids import Pids
from kuasar.agent.process import Process
from kuasar.agent.remote import make_remote_streams
from kuasar.agent.spec import adapt
from kuasar.agent.states import Status
from kuasar.agent.stdio import StdioPaths, Streams, make_streams
from kuasar.agent.storage import Storage
from kuasar.core import cgroup, log
from kuasar.core.aio import Future, Lock, Loop
from kuasar.core.cgroup import OomWatch
from kuasar.core.descriptors import require_room
from kuasar.core.errors import (
    AlreadyExists,
    DeadlineExceeded,
    InvalidArgument,
    KuasarError,
    NotFound,
    Unimplemented,
    WrongState,
    wrap,
)
from kuasar.core.failpoints import failpoint
from kuasar.core.spawn import Children, Exit

_KILL_SECONDS = 5.0
_POLL_SECONDS = 0.002
_MAX_DEAD = 256
_DESCRIPTORS = 12
"""Of a process at most, while it is started."""


@dataclass
class Container:
    """One container, from ``task.create`` to ``task.delete``."""

    id: str
    directory: str
    rootfs: str
    bundle: str
    init: Process
    lock: Lock
    cgroup: str = ""
    is_mounted: bool = False
    execs: dict[str, Process] = field(default_factory=dict)
    oom: OomWatch | None = None

    def process(self, exec_id: str) -> Process:
        """The init (empty id) or an exec. Raises :class:`NotFound`."""
        if not exec_id:
            return self.init
        process = self.execs.get(exec_id)
        if process is None:
            raise NotFound(f"exec {exec_id} of container {self.id} does not exist", container=self.id, exec=exec_id)
        return process

    @property
    def layers(self) -> str:
        """Where the layers of its root file system are mounted that are no directories of the host."""
        return f"{self.directory}/layers"

    @property
    def processes(self) -> list[Process]:
        """All of them."""
        return [self.init, *self.execs.values()]


class Containers:
    """All containers of the sandbox. One per agent."""

    def __init__(
        self,
        loop: Loop,
        children: Children,
        driver: Driver,
        pids: Pids,
        events: EventLog,
        storage: Storage,
        exchange: Exchange,
        directory: str,
        sandbox: str,
    ) -> None:
        self.driver = driver
        self._loop = loop
        self._children = children
        self._pids = pids
        self._events = events
        self._storage = storage
        self._exchange = exchange
        self._directory = f"{directory}/containers"
        self._sandbox = sandbox
        self._containers: dict[str, Container] = {}
        self._host_pids_of_dead: dict[int, int] = {}
        """Of processes that had ended before we heard of them (an exec of ``true`` mostly has)."""
        children.on_orphan = self._remember_host_pid

    @property
    def ids(self) -> list[str]:
        """The containers there are."""
        return list(self._containers)

    def get(self, container_id: str) -> Container:
        """The container, or :class:`NotFound`."""
        container = self._containers.get(container_id)
        if container is None:
            raise NotFound(f"container {container_id} does not exist", container=container_id)
        return container

    def require(self, capability: str) -> None:
        """Raise :class:`Unimplemented` naming driver and capability unless the driver has it."""
        if capability not in self.driver.capabilities:
            words = self.driver.refusals.get(capability) or f"the {self.driver.name} driver has no {capability}"
            raise Unimplemented(words, engine=self.driver.name, capability=capability)

    def _anticipate(self) -> None:
        if isinstance(self.driver, Anticipating):
            self.driver.anticipate()

    def _make_streams(self, paths: StdioPaths, container_id: str, exec_id: str) -> Streams:
        require_room(_DESCRIPTORS, f"process {container_id}/{exec_id}")
        if paths.remote:
            return make_remote_streams(self._exchange, paths, f"{container_id}/{exec_id}")
        return make_streams(self._loop, paths, is_init=not exec_id)

    # -- create ----------------------------------------------------------------------------------------------------

    async def create(
        self,
        container_id: str,
        bundle: str,
        rootfs: list[Any],
        spec: dict[str, Any],
        paths: StdioPaths,
        deadline: float | None,
    ) -> Container:
        """Make a container whose init waits for :meth:`start`."""
        if container_id in self._containers:
            raise AlreadyExists(f"container {container_id} exists already", container=container_id)
        if paths.terminal:
            self.require("tty")
        self._anticipate()
        directory = f"{self._directory}/{container_id}"
        init = Process(self._loop, container_id, "", self._make_streams(paths, container_id, ""))
        container = Container(container_id, directory, f"{directory}/rootfs", bundle, init, Lock(self._loop))
        self._containers[container_id] = container
        async with container.lock:
            try:
                await self._create_steps(container, rootfs, spec, deadline)
            except BaseException:
                del self._containers[container_id]
                raise
        return container

    async def _create_steps(
        self, container: Container, rootfs: list[Any], spec: dict[str, Any], deadline: float | None
    ) -> None:
        with ExitStack() as undo:
            undo.callback(container.init.streams.close)
            try:
                os.makedirs(container.rootfs, 0o700)
            except OSError as exc:
                raise wrap(exc, f"cannot make the directory of container {container.id}") from exc
            undo.callback(_remove_directory, container)
            undo.callback(self._storage.release, container.id)
            rootfs, spec = await self._storage.prepare(container.id, rootfs, spec, deadline)
            if rootfs:
                mounts.mount_rootfs(rootfs, container.rootfs, container.layers)
                container.is_mounted = True
                undo.callback(mounts.unmount_rootfs, container.rootfs, container.layers)
            failpoint("agent.mounted")
            root = container.rootfs if rootfs else _root_of(container.bundle, spec)
            adapted = adapt(spec, self._pids, root, f"/kuasar/{self._sandbox}-{container.id}")
            container.cgroup = adapted["linux"]["cgroupsPath"]
            process = adapted.get("process")
            if not isinstance(process, dict):
                raise InvalidArgument("spec.process: a map is needed", field="spec.process")
            adapted["process"] = {**process, "terminal": container.init.paths.terminal}
            setup = ContainerSetup(container.id, container.directory, root, adapted)
            stdio = container.init.streams.open()
            with self._children.keeping_orphans():
                started = await self.driver.create(setup, stdio, deadline)
                ended = started.ended or self._children.claim(started.pid)
            undo.pop_all()
        self._made(container, container.init, started, ended)
        container.oom = self._watch_oom(container, started.cgroup or container.cgroup)

    def _made(self, container: Container, process: Process, started: Started, ended: Future[Exit]) -> None:
        dead = self._host_pids_of_dead.pop(started.pid, 0)
        process.exists(started.pid, self._pids.to_host(started.pid) or dead, started.signal)
        process.streams.started(started.console)
        self._loop.spawn(self._see_to_the_end(container, process, ended), f"end of {process.machine.name}")

    def _remember_host_pid(self, pid: int) -> None:
        if len(self._host_pids_of_dead) >= _MAX_DEAD:
            del self._host_pids_of_dead[next(iter(self._host_pids_of_dead))]  # of no process that anybody starts
        self._host_pids_of_dead[pid] = self._pids.to_host(pid)

    def _watch_oom(self, container: Container, path: str) -> OomWatch | None:
        def killed() -> None:
            log.warning("out of memory", container=container.id)
            self._events.publish("task.oom", container_id=container.id)

        try:
            return OomWatch(self._loop, path, killed)
        except KuasarError as exc:
            log.warning("out-of-memory kills will not be told", container=container.id, error=exc)
            return None

    # -- start and exec --------------------------------------------------------------------------------------------

    async def start(self, container: Container, deadline: float | None) -> None:
        """Let the init run."""
        async with container.lock:
            init = container.init
            init.machine.require(Status.CREATED, doing="start")
            init.starting = Future(self._loop)
            try:
                if init.dead:
                    raise WrongState(f"start: the init of {container.id} has died", seen="stopped", needed="created")
                await self.driver.start(container.id, deadline)
                init.machine.to(Status.RUNNING)
            finally:
                init.starting.set_result(None)

    def add_exec(self, container: Container, exec_id: str, process: dict[str, Any], paths: StdioPaths) -> None:
        """Register an exec, which :meth:`start_exec` will start."""
        self.require("exec")
        container.init.machine.require(Status.RUNNING, doing="exec")
        if exec_id in container.execs:
            raise AlreadyExists(f"exec {exec_id} of container {container.id} exists already")
        if not isinstance(process.get("args"), list) or not process["args"]:
            raise InvalidArgument("process.args: must not be empty", field="process.args")
        self._anticipate()  # its start comes some milliseconds after this
        added = Process(self._loop, container.id, exec_id, self._make_streams(paths, container.id, exec_id))
        added.spec = {**process, "terminal": paths.terminal}
        container.execs[exec_id] = added

    async def start_exec(self, container: Container, process: Process, deadline: float | None) -> None:
        """Start a registered exec. After a failure it may be started again."""
        container.init.machine.require(Status.RUNNING, doing="start of an exec")
        process.machine.require(Status.CREATED, doing="start")
        if process.starting is not None and not process.starting.done:
            raise WrongState(f"start: {process.machine.name} is being started", seen="starting", needed="created")
        process.starting = Future(self._loop)
        try:
            stdio = process.streams.open()
            with self._children.keeping_orphans():
                started = await self.driver.exec(container.id, process.exec_id, process.spec, stdio, deadline)
                ended = started.ended or self._children.claim(started.pid)
            process.machine.to(Status.RUNNING)
            self._made(container, process, started, ended)
        except BaseException:
            process.streams.close()
            process.streams = self._make_streams(process.paths, container.id, process.exec_id)
            raise
        finally:
            process.starting.set_result(None)

    # -- the end ---------------------------------------------------------------------------------------------------

    async def _see_to_the_end(self, container: Container, process: Process, ended: Future[Exit]) -> None:
        end = await ended
        process.reaped(end)
        if process.starting is not None:
            await process.starting  # who started it hears of that first
        if process is container.init:
            await self._end_others(container)
        await process.streams.drain()
        if container.oom is not None:
            container.oom.check()
        process.stopped()
        log.debug("ended", container=container.id, exec=process.exec_id, how=end.words)
        self._events.publish(
            "task.exit",
            container_id=container.id,
            exec_id=process.exec_id,
            pid=process.host_pid,
            **process.end(),
        )

    async def _end_others(self, container: Container) -> None:
        """Nothing of a container outlives its init. The kernel sees to it in a pid namespace of its own, we do in a
        shared one."""
        deadline = time.monotonic() + _KILL_SECONDS
        while cgroup.kill(container.cgroup):
            if time.monotonic() > deadline:
                log.error("processes of an ended container do not die", container=container.id)
                return
            await self._loop.sleep(_POLL_SECONDS)
        for process in container.execs.values():
            if process.pid and not process.exited.done:
                with suppress(DeadlineExceeded):
                    await self._loop.wait_for(process.exited, deadline)

    async def wait(self, process: Process, deadline: float | None) -> None:
        """Until the end of ``process`` has been told."""
        await self._loop.wait_for(process.exited, deadline, f"the end of {process.machine.name}")

    def kill(self, container: Container, process: Process, number: int, everyone: bool) -> None:
        """Send a signal to one process, or to every one of the container."""
        if not 0 <= number < signal.NSIG:
            raise InvalidArgument(f"signal: {number} is no signal", field="signal")
        process.signal(number)
        if everyone and process is container.init:
            if number == signal.SIGKILL:
                cgroup.kill(container.cgroup)
                return
            for pid in cgroup.procs(container.cgroup):
                if pid != process.pid:
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
        if number == signal.SIGKILL and container.init.status is Status.PAUSED:
            with suppress(NotFound):
                cgroup.thaw(container.cgroup)  # a frozen process does not die

    def pids(self, container: Container) -> list[int]:
        """Its processes, as the agent numbers them."""
        if isinstance(self.driver, Measuring):
            return self.driver.pids(container.id)
        return cgroup.procs(container.cgroup)

    async def stats(self, container: Container, deadline: float | None) -> dict[str, Any]:
        """What it has used of the machine."""
        if isinstance(self.driver, Measuring):
            return await self.driver.stats(container.id, deadline)
        return cgroup.stats(container.cgroup)

    # -- changes ---------------------------------------------------------------------------------------------------

    async def pause(self, container: Container, deadline: float | None) -> None:
        """Freeze. Pausing what is paused is harmless."""
        self.require("pause")
        async with container.lock:
            if container.init.status is Status.PAUSED:
                return
            container.init.machine.require(Status.RUNNING, doing="pause")
            await self.driver.pause(container.id, deadline)
            if container.init.status is Status.RUNNING:
                container.init.machine.to(Status.PAUSED)

    async def resume(self, container: Container, deadline: float | None) -> None:
        """Thaw. Resuming what runs is harmless."""
        self.require("pause")
        async with container.lock:
            if container.init.status is Status.RUNNING:
                return
            container.init.machine.require(Status.PAUSED, doing="resume")
            await self.driver.resume(container.id, deadline)
            if container.init.status is Status.PAUSED:
                container.init.machine.to(Status.RUNNING)

    async def update(self, container: Container, resources: dict[str, Any], deadline: float | None) -> None:
        """Change the limits."""
        self.require("update")
        async with container.lock:
            container.init.machine.require(Status.CREATED, Status.RUNNING, Status.PAUSED, doing="update")
            await self.driver.update(container.id, resources, deadline)

    # -- delete ----------------------------------------------------------------------------------------------------

    def delete_exec(self, container: Container, process: Process) -> None:
        """Forget an exec that has ended or was never started."""
        process.machine.require(Status.CREATED, Status.STOPPED, doing="delete")
        if process.starting is not None and not process.starting.done:
            raise WrongState(f"delete: {process.machine.name} is being started", seen="starting", needed="stopped")
        if process.status is Status.CREATED:
            process.discard()
        process.streams.close()
        del container.execs[process.exec_id]

    async def delete(self, container: Container, deadline: float | None) -> None:
        """Remove a container that has ended or was never started, with everything it held."""
        async with container.lock:
            if container.id not in self._containers:
                raise NotFound(f"container {container.id} does not exist", container=container.id)
            init = container.init
            init.machine.require(Status.CREATED, Status.STOPPED, doing="delete")
            if init.status is Status.CREATED:
                init.kill()
                await self._loop.wait_for(init.exited, _limit(deadline), f"the end of container {container.id}")
            await self._remove(container, deadline)

    async def _remove(self, container: Container, deadline: float | None) -> None:
        if container.oom is not None:
            container.oom.close()
            container.oom = None
        await self.driver.delete(container.id, deadline)
        for process in container.processes:
            if process.status is Status.CREATED:
                process.discard()
            process.streams.close()
        if container.is_mounted:
            mounts.unmount_rootfs(container.rootfs, container.layers)
            container.is_mounted = False
        self._storage.release(container.id)
        _remove_directory(container)
        del self._containers[container.id]

    async def stop_all(self, grace: float) -> None:
        """SIGTERM to every container, SIGKILL to what is left after ``grace`` seconds; returns when all are dead."""
        deadline = time.monotonic() + grace
        alive = [container for container in self._containers.values() if container.init.pid]
        if grace > 0:
            for container in alive:
                with suppress(KuasarError, ProcessLookupError):
                    self.kill(container, container.init, signal.SIGTERM, everyone=False)
            await self._all_ended(alive, deadline)
        for container in alive:
            container.init.kill()
            cgroup.kill(container.cgroup)
        await self._all_ended(alive, time.monotonic() + _KILL_SECONDS)

    async def all_told(self) -> None:
        """Until the ends of all containers have been told, or some seconds have passed."""
        await self._all_ended(list(self._containers.values()), time.monotonic() + _KILL_SECONDS)

    async def _all_ended(self, containers: list[Container], deadline: float) -> None:
        for container in containers:
            with suppress(DeadlineExceeded):
                await self._loop.wait_for(container.init.exited, deadline)


def _root_of(bundle: str, spec: dict[str, Any]) -> str:
    """Where the root file system is when the caller has mounted it: ``root.path``, relative to the bundle."""
    root = spec.get("root")
    path = root.get("path") if isinstance(root, dict) else None
    if not isinstance(path, str) or not path:
        raise InvalidArgument("spec.root.path: must not be empty where rootfs is", field="spec.root.path")
    path = os.path.join(bundle, path)
    if not os.path.isdir(path):
        raise InvalidArgument(f"spec.root.path: {path} is no directory", field="spec.root.path")
    return path


def _remove_directory(container: Container) -> None:
    try:
        remove_tree(container.directory)
    except OSError as exc:
        raise wrap(exc, f"cannot remove the directory of container {container.id}") from exc


def _limit(deadline: float | None) -> float:
    limit = time.monotonic() + _KILL_SECONDS
    return limit if deadline is None else min(deadline, limit)
