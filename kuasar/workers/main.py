"""``kuasar-worker``: the process of one sandbox, forked by the zygote (:func:`run`) or executed (:func:`main`).

Lifetime: from ``addSandbox`` to the end of ``sandbox.shutdown``; then it exits with 0, which tells supervisord to
forget it. Any other end is followed by a successor, which finds everything in the sandbox directory. It ends with
supervisord; the sandbox does not.
"""

from __future__ import annotations

import argparse
import os
import sys
import uuid
from typing import Any

from kuasar.bus.dealer import BusDealer
from kuasar.bus.messages import Hello, Request
from kuasar.core import aio, failpoints, log
from kuasar.core.aio import Future, Loop
from kuasar.core.config import Config, ConfigError, load
from kuasar.core.errors import InvalidArgument, KuasarError, Unimplemented
from kuasar.core.failpoints import failpoint
from kuasar.core.ids import require_id
from kuasar.core.spawn import Children
from kuasar.supervisor.keeper_client import Keeper
from kuasar.workers.commands import Commands
from kuasar.workers.logfiles import keep_small
from kuasar.workers.sandbox import Sandbox
from kuasar.workers.states import State
from kuasar.workers.tasks import LOOKS, Tasks

EXIT_GONE = 0
EXIT_OUTDATED = 3
EXIT_USAGE = 2

_UNUSED_SECONDS = 60.0
"""A worker to which nobody has said what to make within this time was forgotten by a gateway that died."""
_WHILE_ADOPTING = LOOKS | {"sandbox.status", "sandbox.wait"}
"""Answered before the agent of an inherited machine is reached."""


class Worker:
    """Bus and sandbox of this process."""

    def __init__(self, loop: Loop, config: Config, sandbox_id: str) -> None:
        self._loop = loop
        self._children = Children(loop)
        self._log_max_bytes = config.supervisor.log_max_bytes
        self._instance = uuid.uuid4().hex
        self._finished: Future[int] = loop.future()
        self._sandbox = Sandbox(loop, self._children, config, sandbox_id)
        self._generation = self._sandbox.directory.next_generation()
        self._bus = BusDealer(loop, config.bus_address, sandbox_id, self._hello, self._handle)
        self._bus.on_acked = self._sandbox.forget_answers
        self._bus.on_outdated = lambda: self._finished.set_result(EXIT_OUTDATED)
        self._tasks = Tasks(self._sandbox, self._bus.publish, Keeper(config.supervisor.keeper))
        self._commands = Commands(self._sandbox, self._tasks.stdio)

    async def serve(self) -> int:
        """Serve until the sandbox is gone; gives the exit code."""
        log.info("worker", generation=self._generation, instance=self._instance)
        try:
            await self._sandbox.load()
            self._tasks.restore()
        except KuasarError as exc:
            log.error("the sandbox cannot be taken over", error=exc)
        failpoint("worker.greeting")
        self._bus.start()
        self._loop.spawn(keep_small(self._loop, self._sandbox.log_path, self._log_max_bytes), "the agent's log")
        self._loop.call_later(_UNUSED_SECONDS, self._give_up_if_unused)
        code = await self._finished
        await self._bus.close()
        return code

    def _hello(self) -> Hello:
        record = self._sandbox.directory.record
        return Hello(
            sandbox=self._sandbox.id,
            namespace=record.namespace if record else "",
            engine=record.engine if record else "",
            sandboxer=record.sandboxer if record else "",
            instance=self._instance,
            generation=self._generation,
            pid=os.getpid(),
            state=self._sandbox.state.value,
            containers=list(record.containers) if record else [],
        )

    def _give_up_if_unused(self) -> None:
        if self._sandbox.state is State.NEW:
            log.warning("nobody has created a sandbox in this worker, leaving")
            try:
                if not self._sandbox.directory.is_damaged:  # the reconciler sets that aside, and frees the rest
                    self._sandbox.directory.remove()
            except KuasarError as exc:
                log.error("the directory stays for the reconciler", error=exc)
            self._finished.set_result(EXIT_GONE)

    async def _handle(self, request: Request) -> dict[str, Any]:
        op, body = request.op, request.body
        failpoint("worker.request")
        try:
            if op not in _WHILE_ADOPTING:
                await self._sandbox.until_adopted()
            if op.startswith("task."):
                reply = await self._tasks.handle(op, body, request.key, request.deadline)
            elif op.startswith("command."):
                reply = await self._commands.handle(op, body, request.deadline)
            else:
                reply = await self._handle_sandbox(op, body, request.key, request.deadline)
            failpoint("worker.answer")
            return reply
        except (KeyError, TypeError, AttributeError) as exc:
            log.error("malformed request", op=op, error=repr(exc))
            raise InvalidArgument(f"{op}: malformed body: {exc!r}") from exc

    async def _handle_sandbox(self, op: str, body: dict[str, Any], key: str, deadline: float | None) -> dict[str, Any]:
        sandbox = self._sandbox
        match op:
            case "sandbox.create":
                return await sandbox.create(body, key)
            case "sandbox.start":
                return await sandbox.start(deadline, key)
            case "sandbox.stop":
                return await sandbox.stop(float(body["timeout"]))
            case "sandbox.wait":
                return await sandbox.wait()
            case "sandbox.status":
                return sandbox.status(bool(body["verbose"]))
            case "sandbox.metrics":
                return await sandbox.metrics()
            case "sandbox.update":
                return await sandbox.update(body, deadline)
            case "sandbox.log_level":
                return await self._log_level(str(body["level"]), deadline)
            case "sandbox.shutdown":
                reply = await sandbox.shutdown()
                self._tasks.close()
                # The answer is sent after this returns; the close flushes it.
                self._loop.call_soon(self._finished.set_result, EXIT_GONE)
                return reply
            case _:
                raise Unimplemented(f"unknown operation {op!r}", capability=op)

    async def _log_level(self, level: str, deadline: float | None) -> dict[str, Any]:
        """Of this process and, while the machine runs, of its agent; empty: only look."""
        if level and level not in log.LEVELS:
            raise InvalidArgument(f"level: {level!r:.80} is none of {', '.join(log.LEVELS)}", field="level")
        if level:
            log.set_level(level)
            log.info("log level", level=level)
        agent, error = "", ""
        if self._sandbox.state is State.READY:
            try:
                reply = await self._sandbox.call_agent("log_level", {"level": level}, "", deadline)
                agent = str(reply["level"])
            except KuasarError as exc:
                error = exc.message
        return {"worker": log.level(), "agent": agent, "agent_error": error}


def run(args: dict[str, Any], config: Config) -> int:
    """Be the worker of ``args["sandbox"]``. Called in a fresh process; gives its exit code."""
    sandbox_id = require_id(args.get("sandbox"), "sandbox")
    log.configure(config.log_level, form=config.log_format, sandbox=sandbox_id)
    log.set_about(aio.get_about)
    failpoints.configure(config.failpoints_dir)
    os.umask(0o077)
    loop = Loop()
    loop.on_error = lambda what, exc: log.error("unhandled error", what=what, error=repr(exc))
    return loop.run(Worker(loop, config, sandbox_id).serve())


def main(argv: list[str] | None = None) -> int:
    """The exec fallback, ``kuasar-worker --config FILE --sandbox ID``. Exits with 0 (sandbox gone), 2 (usage) or 3
    (outdated)."""
    parser = argparse.ArgumentParser(prog="kuasar-worker", description="Serve one sandbox (started by supervisord).")
    parser.add_argument("--config", metavar="FILE", help="configuration (default: /etc/kuasar/kuasar.toml)")
    parser.add_argument("--sandbox", metavar="ID", required=True, help="the sandbox to serve")
    arguments = parser.parse_args(argv)
    try:
        config = load(arguments.config)
        return run({"sandbox": arguments.sandbox}, config)
    except (ConfigError, InvalidArgument) as exc:
        sys.stderr.write(f"{exc}\n")
        return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
