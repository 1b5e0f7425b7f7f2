"""What the record says of a sandbox's containers, where nobody else can: the machine is gone, or its agent is slow."""

from __future__ import annotations

import os
from typing import Any

from kuasar.core.errors import NotFound, WrongState
from kuasar.workers.sandbox import Sandbox

STREAMS = ("stdin", "stdout", "stderr", "terminal")
KILLED = 137
"""Exit status of a process that died with its machine: 128 + SIGKILL."""


class Recorded:
    """The containers in the record of ``sandbox``: what was asked for, the pid, how it was last seen, how it ended."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    # -- kept ----------------------------------------------------------------------------------------------------------

    def find(self, container_id: str) -> dict[str, Any] | None:
        """The facts, which may be changed and then saved; None if there is no such container."""
        return self._sandbox.record.containers.get(container_id)

    def get(self, container_id: str) -> dict[str, Any]:
        """The facts. Raises :class:`NotFound`."""
        facts = self.find(container_id)
        if facts is None:
            raise NotFound(f"container {container_id} does not exist", container=container_id)
        return facts

    def execs(self, container_id: str) -> dict[str, Any]:
        """The streams of its execs that are relayed, by their ids. Raises :class:`NotFound`."""
        execs: dict[str, Any] = self.get(container_id).setdefault("execs", {})
        return execs

    def process(self, container_id: str, exec_id: str) -> dict[str, Any]:
        """The facts of one of its processes; empty if nothing is recorded."""
        facts = self.find(container_id) or {}
        return facts.get("execs", {}).get(exec_id, {}) if exec_id else facts

    def streams(self, container_id: str, exec_id: str) -> dict[str, Any]:
        """What the caller gave as streams, where the agent knows only that they are streams."""
        facts = self.process(container_id, exec_id)
        return {name: facts[name] for name in STREAMS if name in facts}

    def note(self, container_id: str, **facts: Any) -> None:
        """Write down what has become of a container."""
        known = self.find(container_id)
        if known is not None:
            known |= facts
            self._sandbox.directory.save_if_possible()

    def note_exit(self, container_id: str, exit_status: int, exited_at: int) -> None:
        """Write down how it ended; the first time counts."""
        known = self.find(container_id)
        if known is not None and "exited_at" not in known:
            self.note(container_id, exit_status=exit_status, exited_at=exited_at)

    # -- told ----------------------------------------------------------------------------------------------------------

    def last_seen(self, op: str, container_id: str) -> dict[str, Any] | None:
        """The answer to ``task.state``, ``task.connect`` or ``task.pids`` of a container whose machine runs; None if it
        was never seen."""
        facts = self.find(container_id)
        if facts is None or not facts["pid"]:
            return None
        if op == "task.connect":
            return self._connected(facts)
        ended = "exited_at" in facts
        if op == "task.pids":
            return {"pids": [] if ended else [[facts["pid"], ""]]}
        status = "stopped" if ended else facts.get("status", "created")
        end = {"exit_status": facts.get("exit_status", 0), "exited_at": facts.get("exited_at", 0)}
        return self._shown(container_id, "", facts) | {"status": status, **end}

    def after_the_end(self, op: str, container_id: str, exec_id: str) -> dict[str, Any]:
        """The answer to ``op`` when the machine is gone: what was in it is dead, and can be looked at and deleted.
        Raises :class:`NotFound`, and :class:`WrongState` for what only the living can do."""
        facts = self.get(container_id)
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
                    facts.get("execs", {}).pop(exec_id, None)
                else:
                    self._sandbox.record.containers.pop(container_id)
                self._sandbox.directory.save_if_possible()
                return {"pid": facts["pid"], **end}
            case "task.state":
                return self._shown(container_id, exec_id, facts) | {"status": "stopped", **end}
            case "task.connect":
                return self._connected(facts)
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

    def _shown(self, container_id: str, exec_id: str, facts: dict[str, Any]) -> dict[str, Any]:
        """A process as ``task.state`` shows it, but for how it is."""
        asked = {name: facts[name] for name in ("bundle", *STREAMS)} | self.streams(container_id, exec_id)
        return {"id": container_id, "exec_id": exec_id, "pid": facts["pid"], **asked}

    @staticmethod
    def _connected(facts: dict[str, Any]) -> dict[str, Any]:
        return {"task_pid": facts["pid"], "shim_pid": os.getpid()}
