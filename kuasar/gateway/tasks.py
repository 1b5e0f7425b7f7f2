"""containerd's Task API, ``containerd.task.v3.Task``: containers and their processes, carried out by the agents.

Requests name the container only; ``<bundle>/sandbox`` says at Create which pod it belongs to. After every success the
matching event is announced to containerd.
"""

from __future__ import annotations

import json
import os
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from kuasar.api.gen.containerd.events import task_pb2 as events
from kuasar.api.gen.containerd.task.v3 import task_pb2 as pb
from kuasar.api.gen.containerd.types import mount_pb2, task_pb2
from kuasar.core.config import Config
from kuasar.core.errors import AlreadyExists, InvalidArgument, Unimplemented
from kuasar.core.ids import require_id
from kuasar.gateway.announce import Announcer
from kuasar.gateway.calls import Call
from kuasar.gateway.directory import Directory, sandbox_of_bundle
from kuasar.gateway.link import Workers
from kuasar.gateway.stats import metrics_any
from kuasar.gateway.times import timestamp

_STATUS = {
    "created": task_pb2.Status.CREATED,
    "running": task_pb2.Status.RUNNING,
    "stopped": task_pb2.Status.STOPPED,
    "paused": task_pb2.Status.PAUSED,
    "unknown": task_pb2.Status.UNKNOWN,
}
_MAX_SIGNAL = 64


class TaskService:
    """One per gateway; the state of the containers is in the agents."""

    def __init__(self, config: Config, directory: Directory, workers: Workers, announcer: Announcer) -> None:
        self._config = config
        self._directory = directory
        self._workers = workers
        self._announcer = announcer

    async def Create(self, request: pb.CreateTaskRequest, call: Call) -> pb.CreateTaskResponse:  # noqa: N802
        """Make the container and its first process, which does not run yet."""
        container = require_id(request.id, "id")
        if request.checkpoint:
            raise await self._no_checkpoint(sandbox_of_bundle(request.bundle), call, "checkpoint")
        sandbox = await self._directory.require_sandbox(call.namespace, sandbox_of_bundle(request.bundle))
        if not call.repeated and self._directory.has_container(call.namespace, container):
            raise AlreadyExists(f"container {container} exists already in namespace {call.namespace}")
        self._directory.add_container(call.namespace, container, sandbox)
        _bind(call, container, sandbox)
        body = {
            "id": container,
            "bundle": request.bundle,
            "rootfs": [_mount(mount) for mount in request.rootfs],
            "terminal": request.terminal,
            "stdin": request.stdin,
            "stdout": request.stdout,
            "stderr": request.stderr,
        }
        try:
            reply = await self._workers.change(sandbox, "task.create", body, call)
        except AlreadyExists:
            raise  # it is the container of another call
        except BaseException:
            self._directory.remove_container(call.namespace, container)
            raise
        # Again: a worker that was replaced meanwhile did not name it when it greeted.
        self._directory.add_container(call.namespace, container, sandbox)
        self._announcer.announce(
            call.namespace,
            events.TaskCreate(
                container_id=container,
                bundle=request.bundle,
                rootfs=request.rootfs,
                io=events.TaskIO(
                    stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, terminal=request.terminal
                ),
                pid=reply["pid"],
            ),
        )
        return pb.CreateTaskResponse(pid=reply["pid"])

    async def Start(self, request: pb.StartRequest, call: Call) -> pb.StartResponse:  # noqa: N802
        """Let the first process run, or start an exec."""
        with self._announcer.starting(call.namespace, request.id, request.exec_id):
            sandbox, body = await self._process(request, call)
            reply = await self._workers.change(sandbox, "task.start", body, call)
            pid = reply["pid"]
            self._announcer.announce(
                call.namespace,
                events.TaskExecStarted(container_id=request.id, exec_id=request.exec_id, pid=pid)
                if request.exec_id
                else events.TaskStart(container_id=request.id, pid=pid),
            )
        return pb.StartResponse(pid=pid)

    async def Exec(self, request: pb.ExecProcessRequest, call: Call) -> Empty:  # noqa: N802
        """Add another process; Start starts it."""
        sandbox, body = await self._process(request, call)
        require_id(request.exec_id, "exec_id")
        body |= {
            "process": _json_of(request.spec, "spec"),
            "terminal": request.terminal,
            "stdin": request.stdin,
            "stdout": request.stdout,
            "stderr": request.stderr,
        }
        await self._workers.change(sandbox, "task.exec", body, call)
        self._announcer.announce(call.namespace, events.TaskExecAdded(container_id=request.id, exec_id=request.exec_id))
        return Empty()

    async def Kill(self, request: pb.KillRequest, call: Call) -> Empty:  # noqa: N802
        """Send a signal to one process, or with ``all`` to every process of the container."""
        sandbox, body = await self._process(request, call)
        if not 0 < request.signal <= _MAX_SIGNAL:
            raise InvalidArgument(f"signal: {request.signal} is no signal number (1 to {_MAX_SIGNAL})", field="signal")
        await self._workers.change(sandbox, "task.kill", body | {"signal": request.signal, "all": request.all}, call)
        return Empty()

    async def Wait(self, request: pb.WaitRequest, call: Call) -> pb.WaitResponse:  # noqa: N802
        """Answers when the process has ended."""
        sandbox, body = await self._process(request, call)
        reply = await self._workers.wait(sandbox, "task.wait", body, call)
        return pb.WaitResponse(exit_status=reply["exit_status"], exited_at=timestamp(reply["exited_at"]))

    async def State(self, request: pb.StateRequest, call: Call) -> pb.StateResponse:  # noqa: N802
        """Where a process stands."""
        sandbox, body = await self._process(request, call)
        reply = await self._workers.read(sandbox, "task.state", body, call)
        return pb.StateResponse(
            id=reply["id"],
            bundle=reply["bundle"],
            pid=reply["pid"],
            status=_STATUS[reply["status"]],
            stdin=reply["stdin"],
            stdout=reply["stdout"],
            stderr=reply["stderr"],
            terminal=reply["terminal"],
            exit_status=reply["exit_status"],
            exited_at=timestamp(reply["exited_at"]),
            exec_id=reply["exec_id"],
        )

    async def Pids(self, request: pb.PidsRequest, call: Call) -> pb.PidsResponse:  # noqa: N802
        """All processes of the container, by host pid."""
        sandbox, body = await self._process(request, call)
        reply = await self._workers.read(sandbox, "task.pids", body, call)
        return pb.PidsResponse(processes=[task_pb2.ProcessInfo(pid=pid) for pid, _ in reply["pids"]])

    async def Stats(self, request: pb.StatsRequest, call: Call) -> pb.StatsResponse:  # noqa: N802
        """Statistics of the container, in the cgroup version of the node."""
        sandbox, body = await self._process(request, call)
        reply = await self._workers.read(sandbox, "task.stats", body, call)
        return pb.StatsResponse(stats=metrics_any(reply["stats"]))

    async def Update(self, request: pb.UpdateTaskRequest, call: Call) -> Empty:  # noqa: N802
        """Change the container's resources (OCI LinuxResources)."""
        sandbox, body = await self._process(request, call)
        resources = _json_of(request.resources, "resources")
        await self._workers.change(sandbox, "task.update", body | {"resources": resources}, call)
        return Empty()

    async def ResizePty(self, request: pb.ResizePtyRequest, call: Call) -> Empty:  # noqa: N802
        """Change the size of the process's terminal."""
        sandbox, body = await self._process(request, call)
        body |= {"width": request.width, "height": request.height}
        await self._workers.read(sandbox, "task.resize_pty", body, call)
        return Empty()

    async def CloseIO(self, request: pb.CloseIORequest, call: Call) -> Empty:  # noqa: N802
        """Close the process's standard input."""
        sandbox, body = await self._process(request, call)
        if request.stdin:
            await self._workers.read(sandbox, "task.close_io", body, call)
        return Empty()

    async def Delete(self, request: pb.DeleteRequest, call: Call) -> pb.DeleteResponse:  # noqa: N802
        """Forget a process that has ended; of the first process: the whole container."""
        sandbox, body = await self._process(request, call)
        reply = await self._workers.change(sandbox, "task.delete", body, call)
        exited_at = timestamp(reply["exited_at"])
        if not request.exec_id:
            self._directory.remove_container(call.namespace, request.id)
        self._announcer.announce(
            call.namespace,
            events.TaskDelete(
                container_id=request.id,
                id=request.exec_id or request.id,
                pid=reply["pid"],
                exit_status=reply["exit_status"],
                exited_at=exited_at,
            ),
        )
        return pb.DeleteResponse(pid=reply["pid"], exit_status=reply["exit_status"], exited_at=exited_at)

    async def Pause(self, request: pb.PauseRequest, call: Call) -> Empty:  # noqa: N802
        """Freeze the container."""
        sandbox, body = await self._process(request, call)
        await self._workers.change(sandbox, "task.pause", body, call)
        self._announcer.announce(call.namespace, events.TaskPaused(container_id=request.id))
        return Empty()

    async def Resume(self, request: pb.ResumeRequest, call: Call) -> Empty:  # noqa: N802
        """Thaw it."""
        sandbox, body = await self._process(request, call)
        await self._workers.change(sandbox, "task.resume", body, call)
        self._announcer.announce(call.namespace, events.TaskResumed(container_id=request.id))
        return Empty()

    async def Connect(self, request: pb.ConnectRequest, call: Call) -> pb.ConnectResponse:  # noqa: N802
        """containerd reconnects: the container's pid, and the gateway's as that of the "shim"."""
        sandbox, body = await self._process(request, call)
        reply = await self._workers.read(sandbox, "task.connect", body, call)
        return pb.ConnectResponse(shim_pid=os.getpid(), task_pid=reply["task_pid"], version="3")

    async def Checkpoint(self, request: pb.CheckpointTaskRequest, call: Call) -> Empty:  # noqa: N802
        """No engine of today can."""
        sandbox, _ = await self._process(request, call)
        raise await self._no_checkpoint(sandbox, call, "Checkpoint")

    async def _no_checkpoint(self, sandbox: str, call: Call, what: str) -> Unimplemented:
        await self._directory.require_sandbox(call.namespace, sandbox)
        entry = self._config.sandboxers.get(self._directory.sandboxer_of(sandbox))
        engine = entry.engine if entry else "unknown"
        return Unimplemented(f"{what}: engine {engine} has no checkpoint", engine=engine, capability="checkpoint")

    async def Shutdown(self, request: pb.ShutdownRequest, call: Call) -> Empty:  # noqa: N802
        """Asks a shim to end. Nothing ends: newer containerd sends it after every Delete, while the pod lives."""
        require_id(request.id, "id")
        return Empty()

    async def _process(self, request: Any, call: Call) -> tuple[str, dict[str, Any]]:
        """(sandbox, body with the ids) of a request that names a container and perhaps an exec."""
        container = require_id(request.id, "id")
        body = {"id": container}
        if hasattr(request, "exec_id"):
            body["exec_id"] = require_id(request.exec_id, "exec_id") if request.exec_id else ""
        known = call.durable.sandbox_of(f"{call.namespace}/{container}") if call.durable and call.repeated else ""
        sandbox = known or await self._directory.require_container(call.namespace, container)
        _bind(call, container, sandbox)
        return sandbox, body


def _bind(call: Call, container: str, sandbox: str) -> None:
    """For a successor: by the time it repeats the call the container may be gone, and nobody could tell where it
    was."""
    if call.durable is not None:
        call.durable.bind(f"{call.namespace}/{container}", sandbox)


def _mount(mount: mount_pb2.Mount) -> dict[str, Any]:
    return {"type": mount.type, "source": mount.source, "target": mount.target, "options": list(mount.options)}


def _json_of(value: AnyMessage, field: str) -> dict[str, Any]:
    """The JSON object in an Any, as containerd packs OCI types."""
    try:
        decoded = json.loads(value.value)
    except (ValueError, RecursionError) as exc:
        raise InvalidArgument(f"{field}: not valid JSON: {exc}", field=field) from exc
    if not isinstance(decoded, dict):
        raise InvalidArgument(f"{field}: a JSON object is needed, got {type(decoded).__name__}", field=field)
    return decoded
