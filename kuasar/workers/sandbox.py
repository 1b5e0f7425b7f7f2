"""One sandbox: its state, its record and its machine. The worker's requests ``sandbox.*`` end here.

Lives as long as the worker. Everything it acquires is written into the record first (``workers/record.py``), so that
a successor or a later shutdown can free it by name.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from kuasar.backends.base import Backend, Capability, Ended, MachineSpec, Nic
from kuasar.backends.registry import require_backend
from kuasar.core import cgroup, log
from kuasar.core.aio import Cancelled, Future, Lock, Loop, Task
from kuasar.core.config import Config
from kuasar.core.errors import AlreadyExists, InvalidArgument, KuasarError, NotFound, Unimplemented, WrongState, wrap
from kuasar.core.failpoints import failpoint
from kuasar.core.spawn import Children
from kuasar.core.tombstones import Tombstone, bury, last_lines
from kuasar.workers.files import pod_hostname, write_pod_files
from kuasar.workers.host import WorkerHost
from kuasar.workers.link import AgentLink
from kuasar.workers.phases import Phases
from kuasar.workers.pod import PodSpec, wanted_size
from kuasar.workers.record import Record, SandboxDirectory
from kuasar.workers.states import State, StateMachine

if TYPE_CHECKING:
    from kuasar.workers.network import Network

_NETWORK_HOLDINGS = ("tap", "ingress")
_SHM_BYTES = 64 * 1024 * 1024
_START_SECONDS = 60.0
_MUST_BE_RECORDED = {
    (State.NEW, State.CREATED),
    (State.CREATED, State.STARTING),
    (State.STARTING, State.READY),
}
_UNPRIVILEGED = {
    # What containerd sets for its own pods by default: ports below 1024 and ping without capabilities.
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": "0 2147483647",
}


class Sandbox:
    """The sandbox of this worker. ``on_ended`` is called once when the machine has ended, however it did."""

    def __init__(self, loop: Loop, children: Children, config: Config, sandbox_id: str) -> None:
        self.id = sandbox_id
        self.loop = loop
        self.directory = SandboxDirectory(config.sandboxes_dir, sandbox_id)
        self.machine = StateMachine(f"sandbox {sandbox_id}", State.NEW, self._on_state)
        self.link = AgentLink(loop, sandbox_id, self._why_over)
        self.link.on_unreachable = self._on_unreachable
        self.phases = Phases()
        self.on_ended: Callable[[Ended], None] = lambda _: None
        self._config = config
        self._host = WorkerHost(loop, children, config, self)
        self._backend: Backend | None = None
        self._waiters: list[Future[Any]] = []
        self._watcher: Task[None] | None = None
        self._ending = Lock(loop)
        """Held by whoever ends the machine: stop, shutdown, or the watcher of a machine that ended by itself."""
        self._starting: Task[None] | None = None
        self._start_over: Future[None] | None = None
        self._adopting: Future[None] | None = None
        self._unburied: Tombstone | None = None
        """Why the machine has ended, while a full disk does not take it."""

    # -- facts ---------------------------------------------------------------------------------------------------

    @property
    def record(self) -> Record:
        """The record; raises NotFound while nothing has been created."""
        if self.directory.record is None:
            raise NotFound(f"sandbox {self.id} does not exist: nothing has been created in this worker")
        return self.directory.record

    @property
    def state(self) -> State:
        """Where the sandbox is in its life."""
        return self.machine.state

    @property
    def backend(self) -> Backend:
        """The engine's backend; raises NotFound before ``create``."""
        if self._backend is None:
            raise NotFound(f"sandbox {self.id} does not exist: nothing has been created in this worker")
        return self._backend

    @property
    def shm_dir(self) -> str:
        """Mount point of the pod's shared memory, as the agent sees it; empty if the pod uses the host's."""
        return "" if self.record.pod.host_ipc else self.backend.shm_dir

    @property
    def log_path(self) -> str:
        """Where the agent, or a machine's VMM and helpers, write."""
        return f"{self._config.sandbox_log_dir}/{self.id}.agent.log"

    @property
    def console_path(self) -> str:
        """Where the console of a machine that has one is written."""
        return f"{self._config.sandbox_log_dir}/{self.id}.console.log"

    @property
    def cgroup(self) -> str:
        """The sandbox's own cgroup, below the one that CRI gives to the pod."""
        parent = self.record.pod.cgroup_parent
        return f"{cgroup.expand(parent) if parent else '/kuasar'}/kuasar-{self.id}"

    async def call_agent(self, op: str, body: dict[str, Any], key: str, deadline: float | None) -> dict[str, Any]:
        """Have the agent do ``op``. Raises :class:`Unavailable` when the machine has ended before the answer."""
        self.machine.require(State.READY, State.STOPPING, State.STOPPED, doing=op)
        return await self.link.call(op, body, key, deadline)

    # -- a successor looks at what it inherits -----------------------------------------------------------------------

    async def load(self) -> None:
        """Read the record and take over what lives. Damaged records are set aside; the sandbox is then NEW."""
        record = self.directory.load()
        if record is None:
            return
        self._backend = self._make_backend(record.engine)
        self.machine.state = State.UNKNOWN
        recorded = State(record.state)
        log.info("found a record", state=recorded.value, pid=record.machine.get("pid", 0))
        if recorded in (State.CREATED, State.STOPPED):
            self.machine.to(recorded)
            return
        alive = await self._backend.adopt(time.monotonic() + _START_SECONDS)
        if recorded is State.STARTING:
            # The start was not finished; whoever asked for it asks again.
            await self._undo_start()
        elif not alive:
            await self._ended(Ended(255, "the machine died while no worker watched it"))
        else:
            self.machine.to(State.READY)
            self._watcher = self.loop.spawn(self._watch(), "watch")
            self._adopting = self.loop.future()
            self.loop.spawn(self._adopt(recorded, self._adopting), "adopt")

    async def until_adopted(self) -> None:
        """Wait until the agent of an inherited machine is reached, or the machine has been ended because it is not."""
        if self._adopting is not None:
            await self._adopting

    async def _adopt(self, recorded: State, done: Future[None]) -> None:
        """An agent may take its time (an emulated machine on a busy node); what the record knows is told meanwhile."""
        try:
            agent = await self.link.connect(self.backend, time.monotonic() + _START_SECONDS)
            await self.backend.adopted(agent)
        except KuasarError as exc:
            await self.end_hung(f"the agent did not answer the new worker: {exc}", 255)
        else:
            self.link.keep(self.state is State.READY)
            log.info("adopted the running machine", pid=self.backend.pid, recorded=recorded.value)
        finally:
            self._adopting = None
            done.set_result(None)

    def _make_backend(self, engine: str) -> Backend:
        settings = self._config.engine(engine)
        return require_backend(settings.kind)(self._host, settings)

    # -- verbs -----------------------------------------------------------------------------------------------------

    async def create(self, body: dict[str, Any], key: str) -> dict[str, Any]:
        """Record the sandbox. Nothing is started. Legal once; the same request may be repeated."""
        if self.state is not State.NEW:
            if self._is_done("create", key):
                return {}
            raise AlreadyExists(f"sandbox {self.id} exists already, it is {self.state.value}")
        pod = PodSpec.from_wire(body["config"])
        self._check_host_access(pod, body["netns"])
        backend = self._make_backend(body["engine"])
        _check_host_namespaces(pod, backend)
        self._backend = backend
        self.directory.record = Record(
            id=self.id,
            namespace=body["namespace"],
            sandboxer=body["sandboxer"],
            engine=body["engine"],
            netns=body["netns"],
            bundle=body["bundle"],
            pod=pod,
            created_at=time.time_ns(),
            keys={"create": key},
        )
        try:
            self.machine.to(State.CREATED)
        except KuasarError:
            self.directory.record = None
            raise
        return {}

    def _check_host_access(self, pod: PodSpec, netns: str) -> None:
        if netns and not os.path.exists(netns):
            raise InvalidArgument(f"netns: {netns} does not exist", field="netns_path")
        if not netns and not pod.host_network:
            raise InvalidArgument(
                "netns: the pod does not use the host's network, but no network namespace was given",
                field="netns_path",
            )

    def _is_done(self, verb: str, key: str) -> bool:
        """Whether a predecessor has carried out this very request, and died before it could answer."""
        return bool(key) and self.record.keys.get(verb) == key

    def forget_answers(self, keys: list[str]) -> None:
        """These answers have arrived for good: the same request is another one from now on."""
        self.link.forget_answers(keys)
        record = self.directory.record
        if record is not None and any(key in keys for key in record.keys.values()):
            record.keys = {verb: key for verb, key in record.keys.items() if key not in keys}
            self.directory.save_if_possible()

    def _started(self) -> dict[str, Any]:
        record = self.record
        return {
            "pid": self.backend.pid,
            "created_at": record.created_at,
            "phases": record.phases,
            "path": str(record.machine.get("path", "")),
            "template": str(record.machine.get("template", "")),
        }

    async def start(self, deadline: float | None, key: str) -> dict[str, Any]:
        """Start the machine and bring its agent up. On failure everything is undone and start may be repeated."""
        if self.state is State.READY and self._is_done("start", key):
            return self._started()
        self.machine.require(State.CREATED, doing="start")
        record = self.record
        phases = self.phases = Phases()
        try:
            self.machine.to(State.STARTING)
        except KuasarError as exc:
            self._bury("start: nothing was done", Ended(255, str(exc)))
            raise
        steps = self._start_steps(phases, _earlier(deadline, time.monotonic() + _START_SECONDS))
        self._start_over = self.loop.future()
        self._starting = self.loop.spawn(steps, "start")
        try:
            await self._starting
            record.started_at = time.time_ns()
            record.phases = phases.laps
            record.keys["start"] = key
            self.machine.to(State.READY)
        except BaseException as exc:
            log.error("the start failed", phases=phases, error=repr(exc))
            error = self._start_error(exc)
            self._bury(f"start: {phases.laps[-1][0] if phases.laps else 'nothing'} was done", Ended(255, str(error)))
            await self._undo_start()
            raise error from exc
        finally:
            self._starting = None
            self._start_over.set_result(None)
        self.link.keep(True)
        self._watcher = self.loop.spawn(self._watch(), "watch")
        log.info("started", pid=self.backend.pid, phases=phases)
        return self._started()

    def _start_error(self, exc: BaseException) -> BaseException:
        if isinstance(exc, Cancelled):
            return WrongState(f"start: sandbox {self.id} was stopped meanwhile", seen="stopping", needed="created")
        return wrap(exc, f"start of sandbox {self.id}") if isinstance(exc, Exception) else exc

    async def _end_start(self) -> None:
        """Have a start that is under way fail; returns when it is undone (or came to its end before)."""
        if self._starting is not None and self._start_over is not None:
            self._starting.cancel()
            await self._start_over

    async def _start_steps(self, phases: Phases, deadline: float) -> None:
        pod = self.record.pod
        write_pod_files(f"{self.directory.path}/files", pod)
        phases.lap("files")
        self.directory.acquiring("cgroup", self.cgroup)
        cgroup.create(self.cgroup)
        phases.lap("cgroup")
        with ExitStack() as stack:
            spec = self._machine_spec(pod)
            if not self.backend.shares_host_files and self.record.netns:
                network = await self._plumb(spec.vcpus)
                stack.callback(network.close)  # the machine has its own descriptors by then
                spec = _with_network(spec, network)
                phases.lap("network")
            await self.backend.launch(spec, deadline)
            phases.lap("launch")
            agent = await self.link.connect(self.backend, deadline)
            phases.lap("agent")
            await self.backend.settle(agent, spec, deadline)
        setup = {
            "hostname": spec.hostname,
            "sysctls": (_UNPRIVILEGED if self.record.netns else {}) | pod.sysctls,
            "shm_bytes": 0 if pod.host_ipc else _SHM_BYTES,
            "files": {},
        }
        await agent.call("setup", setup, deadline=deadline)
        phases.lap("setup")

    async def _plumb(self, vcpus: int) -> Network:
        from kuasar.core.taps import MAX_QUEUES
        from kuasar.workers.network import plumb  # only pods with a kernel of their own need it

        queues = min(max(1, vcpus), MAX_QUEUES, self.backend.max_queues)
        owner = self.backend.tap_owner(self.id)
        return await plumb(self.loop, self.record.netns, self.id, queues, self._host, owner)

    async def _unplumb(self) -> None:
        """Free what :meth:`_plumb` has made, by the names in the record."""
        holdings = [holding for holding in self._host.holdings() if holding[0] in _NETWORK_HOLDINGS]
        if holdings:
            from kuasar.workers.network import unplumb

            await unplumb(self.loop, self.record.netns, holdings, self._host)

    def _machine_spec(self, pod: PodSpec) -> MachineSpec:
        vcpus, memory_bytes = wanted_size(pod)
        return MachineSpec(
            sandbox_id=self.id,
            hostname=pod_hostname(pod),
            netns=self.record.netns,
            cgroup=self.cgroup,
            host_pid=pod.host_pid,
            host_ipc=pod.host_ipc,
            log_path=self.log_path,
            console_path=self.console_path,
            vcpus=vcpus,
            memory_bytes=memory_bytes,
            annotations=pod.annotations,
        )

    def _why_over(self) -> str:
        return self.record.reason or "stopped" if self.state is State.STOPPED else ""

    def _on_unreachable(self, exc: KuasarError) -> None:
        if self.state is State.READY:
            log.error("the agent cannot be reached any more, ending the machine", error=exc)
            self.loop.spawn(self._end_unreachable(), "end of an unreachable machine")

    async def end_hung(self, reason: str, exit_status: int = 137) -> None:
        """End a running machine whose agent does not do what it must."""
        async with self._ending:
            if self.state is State.READY:
                log.error("ending a machine that hangs", reason=reason, pid=self.backend.pid)
                await self.backend.stop(0, None)
                await self._ended(Ended(exit_status, reason))

    async def _end_unreachable(self) -> None:
        await self.backend.stop(0, None)

    async def _undo_start(self) -> None:
        """Back to CREATED, or where something cannot be freed, to STOPPED: then a shutdown tries again and names it."""
        self.link.close()
        try:
            await self.backend.stop(0, None)
            await self._release()
        except KuasarError as exc:
            log.error("a start that failed cannot be undone", error=exc)
            self._over(Ended(255, f"its start failed and could not be undone: {exc}"))
        else:
            self.machine.to(State.CREATED)

    async def stop(self, grace: float) -> dict[str, Any]:
        """End the machine: gracefully within ``grace`` seconds, then by force. A start that is under way fails.
        Stopping what is stopped frees what could not be freed before, and succeeds."""
        async with self._ending:
            return await self._stop(grace)

    async def _stop(self, grace: float) -> dict[str, Any]:
        await self._end_start()
        if self.state is State.STOPPED:
            await self._release()
        if self.state in (State.NEW, State.CREATED, State.STOPPED, State.GONE):
            return {"stage": "gone"}
        if self.state is State.READY:
            self.machine.to(State.STOPPING)
        self.link.keep(False)
        stage = await self.backend.stop(grace, self.link.agent)
        await self._ended(Ended(0, f"stopped ({stage.value})"))
        log.info("stopped", stage=stage.value)
        return {"stage": stage.value}

    async def wait(self) -> dict[str, Any]:
        """The end of the sandbox."""
        if self.state not in (State.STOPPED, State.GONE):
            future: Future[None] = self.loop.future()
            self._waiters.append(future)
            await future
        record = self.record
        return {"exit_status": record.exit_status, "exited_at": record.exited_at, "reason": record.reason}

    async def shutdown(self) -> dict[str, Any]:
        """End and free everything and forget the sandbox; legal in every state. What cannot be freed stays recorded,
        the error names what blocks it, and a repeated shutdown tries again."""
        async with self._ending:
            return await self._shutdown()

    async def _shutdown(self) -> dict[str, Any]:
        if self.state is State.GONE:
            return {}
        if self.state is not State.NEW:
            await self._stop(0)
            if self.state is State.CREATED:
                self.machine.to(State.STOPPED)
            await self._release()
        elif self.directory.is_damaged:
            # What the lost record named may still be there: the directory is how the reconciler finds it.
            log.warning("the record is lost, the reconciler frees what there is")
            self.machine.to(State.GONE)
            return {}
        self.directory.remove()
        if self._unburied is not None:
            bury(self._config.state_dir, self._unburied)  # there may be room now
        failpoint("worker.removed")
        self.machine.to(State.GONE)
        return {}

    async def metrics(self) -> dict[str, Any]:
        """Statistics of the whole pod: of the cgroup that CRI gave it, else of the sandbox's own."""
        self.machine.require(State.READY, State.STOPPING, doing="metrics")
        parent = self.record.pod.cgroup_parent
        return {"stats": cgroup.stats(cgroup.expand(parent) if parent else self.cgroup)}

    def status(self, verbose: bool) -> dict[str, Any]:
        """Where the sandbox stands; cheap."""
        record = self.record
        status: dict[str, Any] = {
            "state": self.state.value,
            "pid": self.backend.pid,
            "created_at": record.created_at,
            "exited_at": record.exited_at,
            "info": {},
        }
        if verbose:
            status["info"] = self._info(record)
        return status

    def _info(self, record: Record) -> dict[str, str]:
        return {
            "engine": f"{record.engine} ({self.backend.kind})",
            "capabilities": " ".join(sorted(c.value for c in self.backend.capabilities)),
            "pid": str(self.backend.pid),
            "worker_pid": str(os.getpid()),
            "cgroup": self.cgroup,
            "netns": record.netns or "host",
            "directory": self.directory.path,
            "log": f"{self._config.sandbox_log_dir}/{self.id}.log",
            "containers": " ".join(record.containers),
            **self.backend.info,
            "phases": " ".join(f"{name}={milliseconds}ms" for name, milliseconds in record.phases),
            "exit_status": str(record.exit_status),
            "reason": record.reason,
        }

    async def update(self, body: dict[str, Any], deadline: float | None) -> dict[str, Any]:
        """Take over a changed pod configuration: the DNS and host files are rewritten, labels and annotations kept, a
        machine is given what larger limits ask for."""
        self.machine.require(State.CREATED, State.READY, doing="update")
        pod = PodSpec.from_wire(body["config"])
        fixed = ("host_network", "host_pid", "host_ipc", "shared_pid", "cgroup_parent", "hostname", "sysctls")
        for name in fixed:
            if getattr(pod, name) != getattr(self.record.pod, name):
                raise InvalidArgument(
                    f"config.{name}: cannot be changed while the sandbox exists", field=f"config.{name}"
                )
        self.record.pod = pod
        self.directory.save()
        if self.state is State.READY:
            write_pod_files(f"{self.directory.path}/files", pod)
            if Capability.RESIZE in self.backend.capabilities:
                await self.backend.resize(*wanted_size(pod), deadline)
        return {}

    # -- the end -----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Waits for the machine to end on its own account."""
        ended = await self.backend.wait()
        async with self._ending:
            if self.state is State.READY:
                log.error("the machine has ended by itself", reason=ended.reason, status=ended.exit_status)
                await self._ended(ended)

    async def _ended(self, ended: Ended) -> None:
        """Once per life of a machine: record the end, free what it held, tell everyone."""
        if self.state is State.STOPPED:
            return
        watcher, self._watcher = self._watcher, None
        if watcher is not None and self.state is State.STOPPING:
            watcher.cancel()
        self._over(ended)
        await self._release()

    def _over(self, ended: Ended) -> None:
        """Record the end and tell everyone: what cannot be freed keeps nobody from hearing of it."""
        record = self.record
        record.exit_status, record.reason, record.exited_at = ended.exit_status, ended.reason, time.time_ns()
        phases = {State.STOPPING: "stopping", State.STARTING: "start: it could not be undone"}
        self._bury(phases.get(self.state, "running"), ended)
        self.machine.to(State.STOPPED)
        self.on_ended(ended)
        self.link.close()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.set_result(None)

    def _bury(self, phase: str, ended: Ended) -> None:
        """Keep for a day why the machine has ended."""
        record = self.record
        tombstone = Tombstone(
            sandbox=self.id,
            namespace=record.namespace,
            engine=record.engine,
            pod=record.pod.name,
            phase=phase,
            reason=ended.reason,
            exit_status=ended.exit_status,
            created_at=record.created_at,
            started_at=record.started_at,
            ended_at=record.exited_at or time.time_ns(),
            oom_kills=cgroup.oom_kills(self.cgroup),
            console=last_lines(self.console_path),
            log=last_lines(self.log_path),
        )
        self._unburied = None if bury(self._config.state_dir, tombstone) else tombstone

    async def _release(self) -> None:
        """Free every holding, newest first. What cannot be freed stays recorded and is named in the error."""
        stuck: list[str] = []
        for free in (self.backend.release, self._unplumb):
            try:
                await free()
            except (KuasarError, OSError) as exc:  # the rest can be freed nevertheless
                stuck.append(str(exc))
        for kind, name in reversed(list(self.record.holdings)):
            if kind != "cgroup":
                continue
            try:
                await cgroup.destroy(self.loop, name)
            except KuasarError as exc:
                stuck.append(str(exc))
                continue
            self.directory.released(kind, name)
        if stuck:
            log.error("not everything could be freed", stuck="; ".join(stuck))
            raise WrongState(
                f"sandbox {self.id} cannot be freed: {'; '.join(stuck)}", seen=self.state.value, needed="nothing held"
            )

    def _on_state(self, before: State, after: State) -> None:
        log.info("state", before=before.value, after=after.value)
        if after is not State.GONE and self.directory.record is not None:
            self.directory.record.state = after.value
            if (before, after) in _MUST_BE_RECORDED:
                self.directory.save()
            else:  # to take over and to end must be possible on a full disk, too
                self.directory.save_if_possible()


def _with_network(spec: MachineSpec, network: Network) -> MachineSpec:
    nics = tuple(Nic(card.name, card.mac, card.mtu, tuple(card.fds), card.tap) for card in network.interfaces)
    return dataclasses.replace(spec, nics=nics, network=network.to_wire())


def _check_host_namespaces(pod: PodSpec, backend: Backend) -> None:
    """Refuse a pod that shares with the host what its engine cannot share."""
    wanted = {"net": pod.host_network, "pid": pod.host_pid, "ipc": pod.host_ipc}
    names = {"net": "network", "pid": "pid", "ipc": "ipc"}
    for kind, reason in backend.refused_host_namespaces.items():
        if wanted[kind]:
            field = f"config.linux.security_context.namespace_options.{names[kind]}"
            raise Unimplemented(
                f"{field}: a pod of engine {backend.kind} cannot use the host's {names[kind]} namespace: {reason}",
                engine=backend.kind,
                capability=f"host-{names[kind]}",
                field=field,
            )


def _earlier(deadline: float | None, limit: float) -> float:
    return limit if deadline is None else min(deadline, limit)
