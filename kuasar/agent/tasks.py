"""The operations ``task.*``: from the body of a request to the verbs of the containers, and back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from kuasar.agent.containers import Container, Containers
from kuasar.agent.drivers.base import CHECKPOINT
from kuasar.agent.pids import Pids
from kuasar.agent.requests import Body
from kuasar.agent.states import Status
from kuasar.agent.stdio import StdioPaths
from kuasar.core.errors import Unimplemented

Operation = Callable[[Body, float | None], Awaitable[dict[str, Any]]]


class Tasks:
    """One handler per operation (docs/bus.md, "Operations")."""

    def __init__(self, containers: Containers, pids: Pids) -> None:
        self._containers = containers
        self._numbers = pids

    def operations(self) -> dict[str, Operation]:
        """By name."""
        names = (
            *("create", "start", "exec", "kill", "wait", "state", "pids", "stats", "update"),
            *("resize_pty", "close_io", "delete", "pause", "resume", "connect", "checkpoint"),
        )
        return {f"task.{name}": getattr(self, f"_{name}") for name in names}

    def _container(self, body: Body) -> Container:
        return self._containers.get(body.identifier("id"))

    async def _create(self, body: Body, deadline: float | None) -> dict[str, Any]:
        container = await self._containers.create(
            body.identifier("id"),
            body.text("bundle"),
            body.items("rootfs"),
            body.mapping("spec"),
            _paths(body),
            deadline,
        )
        return {"pid": container.init.host_pid}

    async def _start(self, body: Body, deadline: float | None) -> dict[str, Any]:
        container = self._container(body)
        process = container.process(body.exec_id())
        if process is container.init:
            await self._containers.start(container, deadline)
        else:
            await self._containers.start_exec(container, process, deadline)
        return {"pid": process.host_pid}

    async def _exec(self, body: Body, deadline: float | None) -> dict[str, Any]:
        container = self._container(body)
        self._containers.add_exec(container, body.identifier("exec_id"), body.mapping("process"), _paths(body))
        return {}

    async def _kill(self, body: Body, deadline: float | None) -> dict[str, Any]:
        container = self._container(body)
        process = container.process(body.exec_id())
        self._containers.kill(container, process, body.number("signal"), body.flag("all"))
        return {}

    async def _wait(self, body: Body, deadline: float | None) -> dict[str, Any]:
        process = self._container(body).process(body.exec_id())
        await self._containers.wait(process, deadline)
        return process.end()

    async def _state(self, body: Body, deadline: float | None) -> dict[str, Any]:
        container = self._container(body)
        process = container.process(body.exec_id())
        paths = process.paths
        ended = process.status is Status.STOPPED
        return {
            "id": container.id,
            "exec_id": process.exec_id,
            "bundle": container.bundle,
            "pid": process.host_pid,
            "status": process.status.value,
            "stdin": paths.stdin,
            "stdout": paths.stdout,
            "stderr": paths.stderr,
            "terminal": paths.terminal,
            "exit_status": process.exit_status if ended else 0,
            "exited_at": process.exited_at if ended else 0,
        }

    async def _pids(self, body: Body, deadline: float | None) -> dict[str, Any]:
        container = self._container(body)
        execs = {process.pid: exec_id for exec_id, process in container.execs.items() if not process.dead}
        found = ((self._numbers.to_host(pid), execs.get(pid, "")) for pid in self._containers.pids(container))
        return {"pids": [[pid, exec_id] for pid, exec_id in found if pid]}

    async def _stats(self, body: Body, deadline: float | None) -> dict[str, Any]:
        return {"stats": await self._containers.stats(self._container(body), deadline)}

    async def _update(self, body: Body, deadline: float | None) -> dict[str, Any]:
        await self._containers.update(self._container(body), body.mapping("resources"), deadline)
        return {}

    async def _resize_pty(self, body: Body, deadline: float | None) -> dict[str, Any]:
        process = self._container(body).process(body.exec_id())
        process.streams.resize(body.number("width"), body.number("height"))
        return {}

    async def _close_io(self, body: Body, deadline: float | None) -> dict[str, Any]:
        self._container(body).process(body.exec_id()).streams.close_stdin()
        return {}

    async def _delete(self, body: Body, deadline: float | None) -> dict[str, Any]:
        container = self._container(body)
        process = container.process(body.exec_id())
        if process is container.init:
            await self._containers.delete(container, deadline)
        else:
            self._containers.delete_exec(container, process)
        return {"pid": process.host_pid, **process.end()}

    async def _pause(self, body: Body, deadline: float | None) -> dict[str, Any]:
        await self._containers.pause(self._container(body), deadline)
        return {}

    async def _resume(self, body: Body, deadline: float | None) -> dict[str, Any]:
        await self._containers.resume(self._container(body), deadline)
        return {}

    async def _connect(self, body: Body, deadline: float | None) -> dict[str, Any]:
        return {"task_pid": self._container(body).init.host_pid, "shim_pid": self._numbers.agent_on_host}

    async def _checkpoint(self, body: Body, deadline: float | None) -> dict[str, Any]:
        driver = self._containers.driver.name
        raise Unimplemented(f"the {driver} driver has no checkpoint", engine=driver, capability=CHECKPOINT)


def _paths(body: Body) -> StdioPaths:
    return StdioPaths(body.flag("terminal"), body.text("stdin"), body.text("stdout"), body.text("stderr"))
