"""The admin service, ``kuasar.admin.v1.Admin``: what there is on this node, for operators (kuasarctl).

The list never asks a worker: it is put together from greetings, records and one question to supervisord.
"""

# ruff: noqa: N802 - methods are named as the protobuf description names them
from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc.aio

from kuasar.api.gen.kuasar.admin.v1 import admin_pb2 as pb
from kuasar.core import log, records
from kuasar.core.config import Config
from kuasar.core.errors import BackendFailed, InvalidArgument, KuasarError, NotFound, wrap
from kuasar.core.ids import require_id
from kuasar.core.programs import run_program
from kuasar.core.records import Summary
from kuasar.gateway.calls import Call
from kuasar.gateway.commands import Commands
from kuasar.gateway.directory import Directory
from kuasar.gateway.feed import Feed
from kuasar.gateway.grpc_server import grpc_status
from kuasar.gateway.link import Workers
from kuasar.gateway.supervision import Supervision

SERVICE = pb.DESCRIPTOR.services_by_name["Admin"].full_name
ASK_SECONDS = 10.0
ENGINES_SECONDS = 60.0
_RESTARTS_SECONDS = 2.0
"""A list without the restarts is better than none."""

Context = grpc.aio.ServicerContext[Any, Any]
Q = TypeVar("Q")
A = TypeVar("A")


class AdminService:
    """One per gateway; knows nothing of its own."""

    def __init__(
        self, config: Config, directory: Directory, workers: Workers, supervision: Supervision, feed: Feed
    ) -> None:
        self._config = config
        self._directory = directory
        self._workers = workers
        self._supervision = supervision
        self._feed = feed
        self._asking_engines = asyncio.Lock()
        self._commands = Commands(f"{config.state_dir}/commands", directory, workers)

    def handler(self) -> grpc.GenericRpcHandler:
        """What a gRPC server needs to serve it."""
        unary: dict[str, tuple[Any, Any]] = {
            "ListSandboxes": (self.ListSandboxes, pb.ListSandboxesRequest),
            "GetSandbox": (self.GetSandbox, pb.GetSandboxRequest),
            "Engines": (self.Engines, pb.EnginesRequest),
            "LogLevel": (self.LogLevel, pb.LogLevelRequest),
        }
        handlers: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(
                _answering(name, function),
                request_deserializer=request.FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
            for name, (function, request) in unary.items()
        }
        handlers["Watch"] = grpc.unary_stream_rpc_method_handler(
            self.Watch,
            request_deserializer=pb.WatchRequest.FromString,
            response_serializer=pb.Event.SerializeToString,
        )
        handlers["Exec"] = grpc.stream_stream_rpc_method_handler(
            self._commands.serve,
            request_deserializer=pb.ExecRequest.FromString,
            response_serializer=pb.ExecResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    async def ListSandboxes(self, request: pb.ListSandboxesRequest, deadline: float) -> pb.ListSandboxesResponse:
        """See admin.proto."""
        # In a thread: a thousand files are no moment on a busy loop. supervisord answers meanwhile.
        reading = asyncio.to_thread(records.read_all, self._config.sandboxes_dir)
        (restarts, error), found = await asyncio.gather(self._restarts(), reading)
        summaries = {summary.id: summary for summary in found}
        for sandbox in self._directory.sandboxes:
            # Between Controller.Create and its first record a sandbox is only ours to know.
            summaries.setdefault(sandbox, Summary(sandbox, "creating"))
        described = [self._described(summaries[sandbox], restarts) for sandbox in sorted(summaries)]
        return pb.ListSandboxesResponse(sandboxes=described, supervisord_error=error)

    async def GetSandbox(self, request: pb.GetSandboxRequest, deadline: float) -> pb.GetSandboxResponse:
        """See admin.proto."""
        sandbox = require_id(request.id, "id")
        if not self._directory.knows(sandbox):
            raise NotFound(f"sandbox {sandbox} does not exist, or its worker has not greeted this gateway")
        call = Call(self._directory.namespace_of(sandbox), deadline)
        reply = await self._workers.read(sandbox, "sandbox.status", {"verbose": True}, call)
        restarts, _ = await self._restarts()
        summary = records.read(self._config.sandboxes_dir, sandbox) or Summary(sandbox, reply["state"])
        described = self._described(summary, restarts)
        described.state = reply["state"]
        described.machine_pid = reply["pid"]
        return pb.GetSandboxResponse(sandbox=described, info={name: str(text) for name, text in reply["info"].items()})

    async def Engines(self, request: pb.EnginesRequest, deadline: float) -> pb.EnginesResponse:
        """See admin.proto. The backends are asked by a program of their own: they are not the gateway's to load."""
        argv = [sys.executable, "-m", "kuasar.backends.describe"]
        argv += ["--config", self._config.path] if self._config.path else []
        async with self._asking_engines:
            seconds = max(0.1, min(deadline - time.monotonic(), ENGINES_SECONDS))
            done = await asyncio.to_thread(run_program, argv, seconds)
        if done.code:
            raise BackendFailed(f"the engines could not be asked: {done.err.strip()[-500:] or done.code}")
        try:
            return pb.EnginesResponse(engines=[pb.Engine(**values) for values in json.loads(done.out)])
        except (ValueError, TypeError) as exc:
            raise BackendFailed(f"the engines' answer is not understood: {exc}") from exc

    async def LogLevel(self, request: pb.LogLevelRequest, deadline: float) -> pb.LogLevelResponse:
        """See admin.proto. The workers are asked side by side: one that hangs keeps nobody but itself."""
        if request.level and request.level not in log.LEVELS:
            raise InvalidArgument(f"level: {request.level!r:.80} is none of {', '.join(log.LEVELS)}", field="level")
        sandboxes = [require_id(sandbox, "sandboxes") for sandbox in request.sandboxes]
        found: list[pb.ProcessLogLevel] = []
        if request.gateway:
            if request.level:
                log.set_level(request.level)
                log.info("log level", level=request.level)
            found.append(pb.ProcessLogLevel(process="gateway", level=log.level()))
        asked = await asyncio.gather(*(self._log_level(sandbox, request.level, deadline) for sandbox in sandboxes))
        return pb.LogLevelResponse(processes=[*found, *(each for both in asked for each in both)])

    async def _log_level(self, sandbox: str, level: str, deadline: float) -> list[pb.ProcessLogLevel]:
        """Of a worker and its agent."""
        try:
            if not self._directory.knows(sandbox):
                raise NotFound(f"sandbox {sandbox} does not exist, or its worker has not greeted this gateway")
            call = Call(self._directory.namespace_of(sandbox), deadline)
            reply = await self._workers.read(sandbox, "sandbox.log_level", {"level": level}, call)
        except KuasarError as exc:
            return [pb.ProcessLogLevel(process="worker", sandbox=sandbox, error=exc.message)]
        found = [pb.ProcessLogLevel(process="worker", sandbox=sandbox, level=reply["worker"])]
        if reply["agent"] or reply["agent_error"]:
            agent, error = reply["agent"], reply["agent_error"]
            found.append(pb.ProcessLogLevel(process="agent", sandbox=sandbox, level=agent, error=error))
        return found

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.Event]:
        """See admin.proto."""
        if request.id:
            try:
                require_id(request.id, "id")
            except KuasarError as exc:
                await context.abort(grpc_status(exc), exc.message)
        with self._feed.watching(request.id) as watcher:
            yield pb.Event(at=time.time_ns(), topic="watching", sandbox=request.id)
            while True:
                event = await watcher.next()
                yield pb.Event(
                    at=event.at,
                    topic=event.topic,
                    sandbox=event.sandbox,
                    namespace=event.namespace,
                    data=event.data,
                    lost=event.lost,
                )

    async def _restarts(self) -> tuple[dict[str, int], str]:
        """By sandbox, and why they are not known."""
        try:
            async with asyncio.timeout(_RESTARTS_SECONDS):
                return await self._supervision.restarts(), ""
        except KuasarError as exc:
            return {}, exc.message
        except TimeoutError:
            return {}, f"supervisord did not answer within {_RESTARTS_SECONDS:g} s"

    def _described(self, summary: Summary, restarts: dict[str, int]) -> pb.Sandbox:
        link = self._workers.link(summary.id)
        hello = link.hello if link is not None else None
        return pb.Sandbox(
            id=summary.id,
            namespace=summary.namespace or self._directory.namespace_of(summary.id),
            sandboxer=summary.sandboxer or self._directory.sandboxer_of(summary.id),
            engine=summary.engine,
            state=summary.state,
            worker=link.state if link is not None else "expected",
            worker_pid=hello.pid if hello is not None else 0,
            generation=max(summary.generation, hello.generation if hello is not None else 0),
            restarts=restarts.get(summary.id, -1),
            pod_name=summary.pod_name,
            pod_namespace=summary.pod_namespace,
            pod_uid=summary.pod_uid,
            created_at=summary.created_at,
            started_at=summary.started_at,
            exited_at=summary.exited_at,
            exit_status=summary.exit_status,
            reason=summary.reason,
            machine_pid=summary.machine_pid,
            containers=summary.containers,
            phases=[pb.Phase(name=name, milliseconds=ms) for name, ms in summary.phases],
        )


def _answering(name: str, function: Callable[[Q, float], Awaitable[A]]) -> Callable[[Q, Context], Awaitable[A]]:
    async def answer(request: Q, context: Context) -> A:
        remaining = context.time_remaining()
        most = ENGINES_SECONDS if name == "Engines" else ASK_SECONDS
        seconds = most if remaining is None else min(remaining, most)
        try:
            return await function(request, time.monotonic() + seconds)
        except Exception as exc:
            error = wrap(exc, f"Admin.{name}")
            if not isinstance(exc, KuasarError):
                log.error("unexpected error", method=f"Admin.{name}", error=repr(exc))
            await context.abort(grpc_status(error), error.message)

    return answer
