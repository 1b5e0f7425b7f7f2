"""The requests ``command.*``: an operator's commands in the sandbox itself, carried out by the agent.

``command.run`` lasts as long as the command: when whoever asked for it is gone, or has lost interest, the request is
cancelled and the command ends with it. A successor of this worker gets the request again and goes on with what it finds
running.
"""

from __future__ import annotations

import time
from typing import Any

from kuasar.agent import protocol
from kuasar.core import log
from kuasar.core.aio import Future
from kuasar.core.errors import KuasarError, NotFound, ResourceExhausted, Unimplemented
from kuasar.core.ids import require_id
from kuasar.workers.sandbox import Sandbox
from kuasar.workers.states import State
from kuasar.workers.stdio import COMMANDS, Stdio

MOST = 16
_START_SECONDS = 30.0
_END_SECONDS = 10.0
_GRACE_SECONDS = 10.0
"""How much longer than its own time a command may take: the agent ends it, this is for an agent that hangs."""
_TOLD = ("command", "args", "env", "cwd", "terminal", "width", "height", "seconds")


class Commands:
    """The commands of the worker's sandbox; their streams go through ``stdio`` where the agent cannot open FIFOs."""

    def __init__(self, sandbox: Sandbox, stdio: Stdio) -> None:
        self._sandbox = sandbox
        self._stdio = stdio
        self._running: dict[str, Future[None]] = {}
        """Done when it has been started."""

    async def handle(self, op: str, body: dict[str, Any], deadline: float | None) -> dict[str, Any]:
        """Carry out one request."""
        command = require_id(body.get("command"), "command")
        match op:
            case "command.run":
                return await self._run(command, body)
            case "command.kill" | "command.resize":
                await self._started(command, deadline)
                return await self._sandbox.call_agent(op, body, "", deadline)
            case "command.close_io":
                await self._started(command, deadline)
                if self._stdio.close_stdin(COMMANDS, command):
                    return {}
                return await self._sandbox.call_agent(op, body, "", deadline)
            case _:
                raise Unimplemented(f"unknown operation {op!r}", capability=op)

    async def _started(self, command: str, deadline: float | None) -> None:
        started = self._running.get(command)
        if started is None:
            raise NotFound(f"command {command} does not run in sandbox {self._sandbox.id}", command=command)
        await self._sandbox.loop.wait_for(started, deadline, f"the start of command {command}")

    async def _run(self, command: str, body: dict[str, Any]) -> dict[str, Any]:
        sandbox = self._sandbox
        sandbox.machine.require(State.READY, doing="run a command")
        agent = sandbox.link.agent
        if agent is not None and protocol.COMMANDS not in agent.capabilities:
            engine = sandbox.record.engine
            raise Unimplemented(
                f"sandbox {sandbox.id} (engine {engine}) has no place for commands: its agent does not offer it",
                engine=engine,
                capability=protocol.COMMANDS,
            )
        if len(self._running) >= MOST:
            raise ResourceExhausted(f"{MOST} commands run in sandbox {sandbox.id} already")
        started = self._running[command] = sandbox.loop.future()
        try:
            return await self._run_steps(command, body, started)
        finally:
            started.set_result(None)
            del self._running[command]
            await self._end(command)

    async def _run_steps(self, command: str, body: dict[str, Any], started: Future[None]) -> dict[str, Any]:
        sandbox = self._sandbox
        paths = {name: body[name] for name in ("stdin", "stdout", "stderr", "terminal")}
        relayed = sandbox.backend.relays_streams
        streams = self._stdio.open(COMMANDS, command, paths, adopt=True) if relayed else paths
        request = {name: body[name] for name in _TOLD} | {**streams, "terminal": paths["terminal"]}
        log.info("command", command=command, args=body["args"])
        await sandbox.call_agent("command.start", request, "", time.monotonic() + _START_SECONDS)
        started.set_result(None)
        seconds = body["seconds"]
        limit = time.monotonic() + seconds + _GRACE_SECONDS if seconds else None
        ended = await sandbox.call_agent("command.wait", {"command": command}, "", limit)
        if relayed:
            await self._stdio.passed_on(COMMANDS, command)
        return ended

    async def _end(self, command: str) -> None:
        """Whatever has become of it, nothing of it stays."""
        try:
            if self._sandbox.state is State.READY:
                limit = time.monotonic() + _END_SECONDS
                await self._sandbox.call_agent("command.delete", {"command": command}, "", limit)
        except KuasarError as exc:
            log.warning("a command could not be ended", command=command, error=exc)
        self._stdio.close(COMMANDS, command)
