"""The requests ``task.*``: prepared here with what belongs to the machine, carried out by the agent.

When the machine is gone its containers are dead, and the record answers for them: ``wait`` and ``delete`` give 137 with
the time of the end, so that containerd can finish with them in the usual way.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from kuasar.agent.client import AgentClient
from kuasar.backends.base import Ended
from kuasar.core import cgroup, log
from kuasar.core.cgroup.translate import v2_as_v1
from kuasar.core.errors import DeadlineExceeded, KuasarError, NotFound, Unavailable, WrongState
from kuasar.core.failpoints import failpoint
from kuasar.core.ids import require_id
from kuasar.core.threads import in_thread
from kuasar.workers.keeping import Keeper
from kuasar.workers.sandbox import Sandbox
from kuasar.workers.sizing import fit_machine, note_limits
from kuasar.workers.spec import add_pod_mounts, cgroups_path, read_spec
from kuasar.workers.states import State
from kuasar.workers.stdio import Stdio

_MOVING = frozenset({"task.create", "task.exec"})
_STREAMS = ("stdin", "stdout", "stderr", "terminal")
_UNMAKE_SECONDS = 10.0
_HUNG_SECONDS = 10.0
KILLED = 137
"""Exit status of a process that died with its machine: 128 + SIGKILL."""


class Tasks:
    """The containers of the worker's sandbox. ``publish(topic, body, acknowledged)`` sends an event to the gateway."""

    def __init__(
        self,
        sandbox: Sandbox,
        publish: Callable[[str, dict[str, Any], Callable[[], None]], None],
        keeper: Keeper | None = None,
    ) -> None:
        self._sandbox = sandbox
        self.stdio = self._stdio = Stdio(sandbox.loop, sandbox.id, keeper)
        self._publish = publish
        sandbox.link.on_agent = self._on_agent
        sandbox.on_ended = self._on_ended

    async def handle(self, op: str, body: dict[str, Any], key: str, deadline: float | None) -> dict[str, Any]:
        """Carry out one ``task.*`` request."""
        require_id(body.get("id"), "id")
        if body.get("exec_id"):
            require_id(body["exec_id"], "exec_id")
        if op in _MOVING and not self._is_over() and self._sandbox.backend.uses_host_cgroups:
            # The engine will reach the kernel's wait for a move in some milliseconds; let it pass meanwhile.
            self._sandbox.loop.spawn(in_thread(self._sandbox.loop, cgroup.prepare), "prepare a move")
        if op == "task.create":
            return await self._create(body, key, deadline)
        if self._is_over():
            return self._afterlife(op, body)
        if op == "task.exec" and self._relays:
            return await self._exec(body, key, deadline)
        if op == "task.close_io" and self._close_stdin(body["id"], body.get("exec_id", "")):
            return {}
        if op == "task.update":
            await self._make_room(body, deadline)
        try:
            if op == "task.kill" and body.get("signal") == signal.SIGKILL:
                return await self._kill_for_good(op, body, key, deadline)
            reply = await self._sandbox.call_agent(op, body, key, deadline)
        except Unavailable:
            if not self._is_over():
                raise
            return self._afterlife(op, body)
        if op == "task.delete":
            await (self._forget_exec(body["id"], body["exec_id"]) if body.get("exec_id") else self._forget(body["id"]))
        elif op == "task.state" and self._relays:
            reply |= self._streams_of(body["id"], body.get("exec_id", ""))
        elif op == "task.stats" and self._relays and cgroup.current().version == 1:
            reply = {"stats": v2_as_v1(reply["stats"])}  # containerd understands its own node's version only
        return reply

    async def _make_room(self, body: dict[str, Any], deadline: float | None) -> None:
        """Before a container's limits are raised, its machine has what they promise."""
        facts = self._sandbox.record.containers.get(body["id"])
        if facts is not None:
            note_limits(facts, body["resources"])
            self._sandbox.directory.save()
            await fit_machine(self._sandbox, deadline)

    async def _kill_for_good(self, op: str, body: dict[str, Any], key: str, deadline: float | None) -> dict[str, Any]:
        """SIGKILL must have its effect also when the agent hangs: then the machine ends, and the container with it."""
        limit = time.monotonic() + _HUNG_SECONDS
        try:
            return await self._sandbox.call_agent(op, body, key, limit if deadline is None else min(limit, deadline))
        except DeadlineExceeded:
            if time.monotonic() < limit:
                raise
            await self._sandbox.end_hung(f"the agent did not carry out a SIGKILL within {_HUNG_SECONDS:g} s")
            return {}

    def _is_over(self) -> bool:
        return self._sandbox.state is State.STOPPED

    async def _create(self, body: dict[str, Any], key: str, deadline: float | None) -> dict[str, Any]:
        sandbox, container_id = self._sandbox, body["id"]
        sandbox.machine.require(State.READY, doing="create a container")
        backend = sandbox.backend
        spec = read_spec(body["bundle"])
        path = ""
        if backend.shares_host_files:
            path = cgroup.expand(cgroups_path(spec) or f"/kuasar/{sandbox.id}-{container_id}")
            spec.setdefault("linux", {})["cgroupsPath"] = path
            sandbox.directory.acquiring("cgroup", path)
        known = container_id in sandbox.record.containers
        if not known:
            facts = {name: body[name] for name in ("bundle", *_STREAMS)}
            facts |= {"cgroup": path, "pid": 0}
            note_limits(facts, (spec.get("linux") or {}).get("resources") or {})
            sandbox.record.containers[container_id] = facts
            sandbox.directory.save()
        try:
            failpoint("task.recorded")
            streams = self._stdio.open(container_id, "", body) if self._relays else {}
            await fit_machine(sandbox, deadline)
            lent = await backend.lend(container_id, body["bundle"], spec, body["rootfs"], deadline)
            failpoint("task.lent")
            add_pod_mounts(lent.spec, backend.files_dir, sandbox.shm_dir)
            request = {**body, **streams, "spec": lent.spec, "rootfs": lent.rootfs}
            reply = await sandbox.call_agent("task.create", request, key, deadline)
            failpoint("task.made")
            sandbox.record.containers[container_id]["pid"] = reply["pid"]
            sandbox.directory.save()
        except Exception:
            if not known and sandbox.state is State.READY:
                await self._unmake(container_id)
                await self._forget(container_id)
            raise
        return reply

    async def _unmake(self, container_id: str) -> None:
        """End and delete a container that the agent has made and that could not be recorded. Harmless if it has not."""
        deadline = time.monotonic() + _UNMAKE_SECONDS
        init = {"id": container_id, "exec_id": ""}
        with suppress(KuasarError):  # mostly: there is no such container
            await self._sandbox.call_agent("task.kill", {**init, "signal": 9, "all": True}, "", deadline)
            await self._sandbox.call_agent("task.wait", init, "", deadline)
            await self._sandbox.call_agent("task.delete", init, "", deadline)

    async def _exec(self, body: dict[str, Any], key: str, deadline: float | None) -> dict[str, Any]:
        """An exec whose streams are relayed: recorded like a container, so that a successor finds them."""
        sandbox, container_id, exec_id = self._sandbox, body["id"], body["exec_id"]
        execs = self._execs(container_id)
        known = exec_id in execs
        if not known:
            execs[exec_id] = {name: body[name] for name in _STREAMS}
            sandbox.directory.save()
        try:
            streams = self._stdio.open(container_id, exec_id, body)
            return await sandbox.call_agent("task.exec", {**body, **streams}, key, deadline)
        except Exception:
            if not known and sandbox.state is State.READY:
                await self._forget_exec(container_id, exec_id)
            raise

    def _execs(self, container_id: str) -> dict[str, Any]:
        """The execs of a container in the record. Raises :class:`NotFound`."""
        facts = self._sandbox.record.containers.get(container_id)
        if facts is None:
            raise NotFound(f"container {container_id} does not exist", container=container_id)
        execs: dict[str, Any] = facts.setdefault("execs", {})
        return execs

    async def _forget_exec(self, container_id: str, exec_id: str) -> None:
        """Strike an exec out; harmless when it is not recorded (whose streams are not relayed never is)."""
        self._stdio.close(container_id, exec_id)
        facts = self._sandbox.record.containers.get(container_id, {})
        if facts.get("execs", {}).pop(exec_id, None) is not None:
            self._sandbox.directory.save_if_possible()

    async def _forget(self, container_id: str) -> None:
        """Strike a container out, with what was lent to it, and its cgroup if the engine left it behind."""
        sandbox = self._sandbox
        self._stdio.close_container(container_id)
        facts = sandbox.record.containers.pop(container_id, None)
        if facts is None:
            return
        try:
            await sandbox.backend.take_back(container_id)
        except KuasarError as exc:  # it is gone for its owner; what stays is recorded and freed with the sandbox
            log.error("what was lent cannot be taken back", container=container_id, error=exc)
        path = facts["cgroup"]
        if path:
            await cgroup.destroy(sandbox.loop, path)
            sandbox.directory.released("cgroup", path)
        sandbox.directory.save_if_possible()

    # -- standard streams ----------------------------------------------------------------------------------------------

    @property
    def _relays(self) -> bool:
        """Whether the standard streams go through this worker."""
        return self._sandbox.backend.relays_streams

    def restore(self) -> None:
        """Go on with the streams that a predecessor has relayed; harmless to repeat, and before there is a record."""
        record = self._sandbox.directory.record
        if record is None or not self._relays:
            return
        for container_id, facts in record.containers.items():
            self._stdio.restore(container_id, "", facts)
            for exec_id, paths in facts.get("execs", {}).items():
                self._stdio.restore(container_id, exec_id, paths)
        if self._is_over():
            self._stdio.machine_ended()

    def close(self) -> None:
        """The sandbox is gone: nothing is relayed any more."""
        self._stdio.close_all()

    def _recorded(self, container_id: str, exec_id: str) -> dict[str, Any]:
        facts: dict[str, Any] = self._sandbox.record.containers.get(container_id, {})
        return facts.get("execs", {}).get(exec_id, {}) if exec_id else facts

    def _streams_of(self, container_id: str, exec_id: str) -> dict[str, Any]:
        """What the caller gave as streams, where the agent knows only that they are streams."""
        facts = self._recorded(container_id, exec_id)
        return {name: facts[name] for name in _STREAMS if name in facts}

    def _close_stdin(self, container_id: str, exec_id: str) -> bool:
        facts = self._recorded(container_id, exec_id)
        if self._relays and facts and not facts.get("stdin_closed"):
            facts["stdin_closed"] = True
            self._sandbox.directory.save()
        return self._stdio.close_stdin(container_id, exec_id)

    # -- what the agent tells ------------------------------------------------------------------------------------------

    def _on_agent(self, agent: AgentClient) -> None:
        self.restore()
        self._stdio.connected(agent)
        agent.on_event = lambda seq, topic, body: self._on_agent_event(agent, seq, topic, body)

    def _on_agent_event(self, agent: AgentClient, seq: int, topic: str, body: dict[str, Any]) -> None:
        if topic == "task.exit" and not body.get("exec_id"):
            self._record_exit(body["container_id"], body["exit_status"], body["exited_at"])
        self._publish(topic, body, lambda: agent.ack_event(seq))

    def _record_exit(self, container_id: str, exit_status: int, exited_at: int) -> None:
        facts = self._sandbox.record.containers.get(container_id)
        if facts is not None and "exited_at" not in facts:
            facts |= {"exit_status": exit_status, "exited_at": exited_at}
            self._sandbox.directory.save_if_possible()

    def _on_ended(self, ended: Ended) -> None:
        """The machine is gone: every container in it that had not ended has ended now."""
        now = time.time_ns()
        self.restore()
        self._stdio.machine_ended()
        for container_id, facts in self._sandbox.record.containers.items():
            if "exited_at" in facts:
                continue
            facts |= {"exit_status": KILLED, "exited_at": now}
            log.info("container ended with its machine", container=container_id, reason=ended.reason)
            self._publish(
                "task.exit",
                {
                    "id": f"{self._sandbox.id}/{container_id}/{now}",
                    "container_id": container_id,
                    "exec_id": "",
                    "pid": facts["pid"],
                    "exit_status": KILLED,
                    "exited_at": now,
                },
                lambda: None,
            )
        self._sandbox.directory.save_if_possible()
        self._publish(
            "sandbox.exit",
            {
                "id": self._sandbox.id,
                "exit_status": ended.exit_status,
                "exited_at": self._sandbox.record.exited_at,
                "reason": ended.reason,
            },
            lambda: None,
        )

    # -- answers for the dead ------------------------------------------------------------------------------------------

    def _afterlife(self, op: str, body: dict[str, Any]) -> dict[str, Any]:
        container_id, exec_id = body["id"], body.get("exec_id", "")
        facts = self._sandbox.record.containers.get(container_id)
        if facts is None:
            raise NotFound(f"container {container_id} does not exist", container=container_id)
        # An exec that nobody has deleted yet died with the machine at the latest.
        end = {
            "exit_status": KILLED if exec_id else facts.get("exit_status", KILLED),
            "exited_at": facts.get("exited_at", self._sandbox.record.exited_at),
        }
        match op:
            case "task.wait":
                return end
            case "task.delete":
                if exec_id:
                    self._stdio.close(container_id, exec_id)
                    facts.get("execs", {}).pop(exec_id, None)
                else:
                    self._stdio.close_container(container_id)
                    self._sandbox.record.containers.pop(container_id)
                self._sandbox.directory.save_if_possible()
                return {"pid": facts["pid"], **end}
            case "task.state":
                shown = {name: facts[name] for name in ("bundle", *_STREAMS)} | self._streams_of(container_id, exec_id)
                return {
                    "id": container_id,
                    "exec_id": exec_id,
                    "pid": facts["pid"],
                    "status": "stopped",
                    **shown,
                    **end,
                }
            case "task.connect":
                return {"task_pid": facts["pid"], "shim_pid": os.getpid()}
            case "task.pids":
                return {"pids": []}
            case "task.close_io":
                return {}
            case "task.kill":
                raise NotFound(f"container {container_id} has ended: {self._sandbox.record.reason}")
            case _:
                raise WrongState(
                    f"{op}: container {container_id} has ended: {self._sandbox.record.reason}",
                    seen="stopped",
                    needed="running",
                )
