"""The requests ``task.*``: prepared here with what belongs to the machine, carried out by the agent.

When the machine is gone its containers are dead, and the record answers for them (``recorded.py``): ``wait`` and
``delete`` give 137 with the time of the end, so that containerd can finish with them in the usual way. While a machine
runs whose agent is slow to answer, the record answers what containerd asks when it starts (:data:`LOOKS`).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from kuasar.agent.client import AgentClient
from kuasar.backends.base import Ended
from kuasar.core import cgroup, log
from kuasar.core.cgroup.translate import v2_as_v1
from kuasar.core.errors import DeadlineExceeded, KuasarError, Unavailable
from kuasar.core.failpoints import failpoint
from kuasar.core.ids import require_id
from kuasar.core.threads import in_thread
from kuasar.workers.keeping import Keeper
from kuasar.workers.recorded import KILLED, STREAMS, Recorded
from kuasar.workers.sandbox import Sandbox
from kuasar.workers.sizing import fit_machine, note_limits
from kuasar.workers.spec import add_pod_mounts, cgroups_path, read_spec
from kuasar.workers.states import State
from kuasar.workers.stdio import Stdio

_MOVING = frozenset({"task.create", "task.exec"})
LOOKS = frozenset({"task.state", "task.connect", "task.pids"})
"""What containerd asks about each container when it starts: without an answer within 2 to 5 s it takes it for lost, and
does not ask again."""
_LOOK_SECONDS = 1.0
_STATUS_AFTER = {"task.start": "running", "task.pause": "paused", "task.resume": "running"}
_UNMAKE_SECONDS = 10.0
_HUNG_SECONDS = 10.0


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
        self._recorded = Recorded(sandbox)
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
            return self._after_the_end(op, body)
        if op == "task.exec" and self._relays:
            return await self._exec(body, key, deadline)
        if op == "task.close_io" and self._close_stdin(body["id"], body.get("exec_id", "")):
            return {}
        if op == "task.update":
            await self._make_room(body, deadline)
        try:
            if op == "task.kill" and body.get("signal") == signal.SIGKILL:
                return await self._kill_for_good(op, body, key, deadline)
            if op in LOOKS and not body.get("exec_id"):
                return await self._look(op, body, deadline)
            reply = await self._sandbox.call_agent(op, body, key, deadline)
        except Unavailable:
            if not self._is_over():
                raise
            return self._after_the_end(op, body)
        if op == "task.delete":
            await (self._forget_exec(body["id"], body["exec_id"]) if body.get("exec_id") else self._forget(body["id"]))
        elif op in _STATUS_AFTER and not body.get("exec_id"):
            self._recorded.note(body["id"], status=_STATUS_AFTER[op])
        elif op == "task.state" and self._relays:
            reply |= self._recorded.streams(body["id"], body["exec_id"])
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

    async def _look(self, op: str, body: dict[str, Any], deadline: float | None) -> dict[str, Any]:
        """How the agent sees a container, or, when it does not answer soon, how it was last seen."""
        container_id, limit = body["id"], time.monotonic() + _LOOK_SECONDS
        try:
            reply = await self._sandbox.call_agent(op, body, "", limit if deadline is None else min(limit, deadline))
        except DeadlineExceeded:
            reply_by_record = self._recorded.last_seen(op, container_id)
            if reply_by_record is None:
                raise
            log.warning("the agent is slow, answering from the record", op=op, container=container_id)
            return reply_by_record
        return reply | self._recorded.streams(container_id, "") if op == "task.state" and self._relays else reply

    def _after_the_end(self, op: str, body: dict[str, Any]) -> dict[str, Any]:
        container_id, exec_id = body["id"], body.get("exec_id", "")
        reply = self._recorded.after_the_end(op, container_id, exec_id)
        if op == "task.delete":
            if exec_id:
                self._stdio.close(container_id, exec_id)
            else:
                self._stdio.close_container(container_id)
        return reply

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
            facts = {name: body[name] for name in ("bundle", *STREAMS)}
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
        execs = self._recorded.execs(container_id)
        known = exec_id in execs
        if not known:
            execs[exec_id] = {name: body[name] for name in STREAMS}
            sandbox.directory.save()
        try:
            streams = self._stdio.open(container_id, exec_id, body)
            return await sandbox.call_agent("task.exec", {**body, **streams}, key, deadline)
        except Exception:
            if not known and sandbox.state is State.READY:
                await self._forget_exec(container_id, exec_id)
            raise

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

    def _close_stdin(self, container_id: str, exec_id: str) -> bool:
        facts = self._recorded.process(container_id, exec_id)
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
            self._recorded.note_exit(body["container_id"], body["exit_status"], body["exited_at"])
        self._publish(topic, body, lambda: agent.ack_event(seq))

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
