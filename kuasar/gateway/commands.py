"""``Admin.Exec``: a command in a sandbox, between a gRPC stream and the FIFOs that worker or agent open.

The command is one open request to the sandbox's worker. When the caller goes away that request is cancelled, when this
gateway dies its successor does not know it: the worker ends the command in both cases. Nothing is held here but what
is on its way: output is read from the FIFO when the caller has taken what was sent before, input is bounded by a
window.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import grpc.aio

from kuasar.api.gen.kuasar.admin.v1 import admin_pb2 as pb
from kuasar.core import log
from kuasar.core.errors import InvalidArgument, KuasarError, NotFound, ResourceExhausted, wrap
from kuasar.core.fifo import open_fifo
from kuasar.core.ids import require_id
from kuasar.gateway.calls import Call
from kuasar.gateway.directory import Directory
from kuasar.gateway.grpc_server import grpc_status
from kuasar.gateway.link import Workers

Context = grpc.aio.ServicerContext[Any, Any]
WINDOW_BYTES = 256 * 1024
"""Input that a caller may send beyond what has been taken."""
MOST = 64
"""Commands at a time, of all sandboxes."""
_CHUNK = 64 * 1024
_MAX_SIGNAL = 64


class Commands:
    """One per gateway. ``directory``: where the FIFOs of commands are; what is in it at the start is nobody's."""

    def __init__(self, directory: str, sandboxes: Directory, workers: Workers) -> None:
        self._directory = directory
        self._sandboxes = sandboxes
        self._workers = workers
        self._running = 0
        shutil.rmtree(directory, ignore_errors=True)

    async def serve(self, requests: AsyncIterator[pb.ExecRequest], context: Context) -> None:
        """One call of ``Exec``."""
        try:
            exit = await self._serve(requests, context)
        except Exception as exc:
            error = wrap(exc, "Admin.Exec")
            if not isinstance(exc, KuasarError):
                log.error("unexpected error", method="Admin.Exec", error=repr(exc))
            await context.abort(grpc_status(error), error.message)
        await context.write(pb.ExecResponse(exit=exit))

    async def _serve(self, requests: AsyncIterator[pb.ExecRequest], context: Context) -> pb.ExecExit:
        try:
            first = await anext(requests)
        except StopAsyncIteration:
            raise InvalidArgument("start: is needed as the first request", field="start") from None
        if first.WhichOneof("request") != "start":
            raise InvalidArgument("start: is needed as the first request", field="start")
        start = first.start
        sandbox = require_id(start.id, "start.id")
        if not self._sandboxes.knows(sandbox):
            raise NotFound(f"sandbox {sandbox} does not exist, or its worker has not greeted this gateway")
        if not start.args:
            raise InvalidArgument("start.args: must not be empty", field="start.args")
        if not 0 <= start.timeout_seconds < float("inf"):
            raise InvalidArgument(f"start.timeout_seconds: {start.timeout_seconds} is no duration", field="start")
        if self._running >= MOST:
            raise ResourceExhausted(f"{MOST} commands are running already")
        self._running += 1
        try:
            async with _Streams(f"{self._directory}/{secrets.token_hex(8)}", start, context) as streams:
                return await self._run(sandbox, start, streams, requests)
        finally:
            self._running -= 1

    async def _run(
        self, sandbox: str, start: pb.ExecStart, streams: _Streams, requests: AsyncIterator[pb.ExecRequest]
    ) -> pb.ExecExit:
        call = Call(self._sandboxes.namespace_of(sandbox), None)
        body = {
            "command": streams.command,
            "args": list(start.args),
            "env": dict(start.env),
            "cwd": start.cwd,
            "terminal": start.terminal,
            "width": start.size.width,
            "height": start.size.height,
            "seconds": start.timeout_seconds,
            **streams.paths,
        }
        log.info("command", sandbox=sandbox, command=streams.command, args=list(start.args))
        tasks: list[asyncio.Task[Any]] = []
        try:
            running = asyncio.create_task(self._workers.wait(sandbox, "command.run", body, call))
            listening = asyncio.create_task(self._listen(sandbox, streams, requests, call))
            copying = asyncio.create_task(streams.copy_output())
            tasks = [running, listening, copying]
            # A failure of the ears or of the caller's stream ends the command; that they come to an end does not.
            pending = set(tasks)
            while running in pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            streams.ended()
            await copying
            ended = running.result()
            log.info("command ended", sandbox=sandbox, command=streams.command, status=ended["exit_status"])
            return pb.ExecExit(status=ended["exit_status"], reason=ended["reason"])
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(
        self, sandbox: str, streams: _Streams, requests: AsyncIterator[pb.ExecRequest], call: Call
    ) -> None:
        """What the caller sends while the command runs."""
        async for request in requests:
            match request.WhichOneof("request"):
                case "stdin":
                    streams.take_input(request.stdin)
                case "close_stdin":
                    # Not here: what the process has not read yet must not keep signals from it.
                    streams.close_input(lambda: self._tell(sandbox, "command.close_io", streams.command, call))
                case "resize":
                    size = {"width": request.resize.width, "height": request.resize.height}
                    await self._tell(sandbox, "command.resize", streams.command, call, **size)
                case "signal":
                    if not 1 <= request.signal <= _MAX_SIGNAL:
                        raise InvalidArgument(f"signal: {request.signal} is no signal", field="signal")
                    await self._tell(sandbox, "command.kill", streams.command, call, signal=request.signal)
                case "start":
                    raise InvalidArgument("start: the command has been started", field="start")
                case _:
                    raise InvalidArgument("request: is empty, or of a newer version", field="request")

    async def _tell(self, sandbox: str, op: str, command: str, call: Call, **values: int) -> None:
        """Something about a command that may have ended meanwhile: then it is of no interest any more."""
        with suppress(NotFound):
            await self._workers.change(sandbox, op, {"command": command, **values}, call)


class _Streams:
    """The FIFOs of one command, in a directory of its own, and what is on its way through them."""

    def __init__(self, directory: str, start: pb.ExecStart, context: Context) -> None:
        self.command = os.path.basename(directory)
        self._directory = directory
        self._context = context
        self._outputs = ("stdout",) if start.terminal else ("stdout", "stderr")
        names = ("stdin", *self._outputs) if start.stdin else self._outputs
        self.paths = {name: f"{directory}/{name}" if name in names else "" for name in ("stdin", "stdout", "stderr")}
        self._fds: dict[str, int] = {}
        self._loop = asyncio.get_running_loop()
        self._writing = asyncio.Lock()
        self._over = asyncio.Event()
        self._input = bytearray()
        self._input_came = asyncio.Event()
        self._taken = 0
        self._close_input: Callable[[], Awaitable[None]] | None = None
        self._undo = AsyncExitStack()

    async def __aenter__(self) -> _Streams:
        async with AsyncExitStack() as undo:
            os.makedirs(self._directory, mode=0o700)
            undo.callback(shutil.rmtree, self._directory, ignore_errors=True)
            for name, path in self.paths.items():
                if path:
                    os.mkfifo(path, 0o600)
                    # Input both ways: opening only the writing end fails while nobody reads.
                    mode = os.O_RDWR if name == "stdin" else os.O_RDONLY
                    self._fds[name] = open_fifo(path, mode, name)
            undo.callback(self._close)
            if "stdin" in self._fds:
                undo.push_async_callback(_end, asyncio.create_task(self._feed()))
            self._undo = undo.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._undo.aclose()

    def _close(self) -> None:
        for fd in self._fds.values():
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
            os.close(fd)
        self._fds.clear()

    async def _send(self, response: pb.ExecResponse) -> None:
        async with self._writing:  # gRPC takes one at a time
            await self._context.write(response)

    # -- output --------------------------------------------------------------------------------------------------------

    def ended(self) -> None:
        """All output is in the FIFOs."""
        self._over.set()

    async def copy_output(self) -> None:
        """Until everything has been sent, after :meth:`ended`."""
        await asyncio.gather(*(self._copy(name) for name in self._outputs))

    async def _copy(self, name: str) -> None:
        fd = self._fds[name]
        await self._readable_or_over(fd)  # nobody may have opened it yet, which reads like its end
        while True:
            over = self._over.is_set()
            try:
                data = os.read(fd, _CHUNK)
            except BlockingIOError:
                if over:
                    return
                await self._readable_or_over(fd)
                continue
            if data:
                await self._send(pb.ExecResponse(stdout=data) if name == "stdout" else pb.ExecResponse(stderr=data))
            elif over:
                return
            else:
                await self._over.wait()

    async def _readable_or_over(self, fd: int) -> None:
        readable = asyncio.Event()
        self._loop.add_reader(fd, readable.set)
        waits = [asyncio.create_task(event.wait()) for event in (readable, self._over)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._loop.remove_reader(fd)
            for wait in waits:
                wait.cancel()

    # -- input ---------------------------------------------------------------------------------------------------------

    def take_input(self, data: bytes) -> None:
        """Have ``data`` written. Raises :class:`ResourceExhausted` for more than the window, :class:`InvalidArgument`
        where there is no input or it has been closed."""
        if "stdin" not in self.paths or not self.paths["stdin"] or self._close_input is not None:
            raise InvalidArgument("stdin: the command has no input, or it has been closed", field="stdin")
        if len(self._input) + len(data) > WINDOW_BYTES:
            raise ResourceExhausted(f"stdin: more than {WINDOW_BYTES} bytes wait for the command")
        self._input += data
        self._input_came.set()

    def close_input(self, tell: Callable[[], Awaitable[None]]) -> None:
        """Let the input end, by ``tell``, when all of it has been written."""
        if self.paths["stdin"]:
            self._close_input = tell
            self._input_came.set()

    async def _feed(self) -> None:
        fd = self._fds["stdin"]
        try:
            while self._input or self._close_input is None:
                await self._input_came.wait()
                self._input_came.clear()
                while self._input:
                    try:
                        size = os.write(fd, self._input)
                    except BlockingIOError:
                        await self._writable(fd)
                        continue
                    del self._input[:size]
                    self._taken += size
                    await self._send(pb.ExecResponse(stdin_taken=self._taken))
            # Its other end is open by then, or what is in the FIFO would go with ours.
            assert self._close_input is not None
            await self._close_input()
        except KuasarError as exc:
            log.warning("the input of a command cannot be closed", command=self.command, error=exc)
        except (grpc.aio.AbortError, asyncio.InvalidStateError, grpc.RpcError):
            return  # the caller is gone
        self._loop.remove_writer(fd)
        os.close(self._fds.pop("stdin"))

    async def _writable(self, fd: int) -> None:
        writable = asyncio.Event()
        self._loop.add_writer(fd, writable.set)
        try:
            await writable.wait()
        finally:
            self._loop.remove_writer(fd)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
